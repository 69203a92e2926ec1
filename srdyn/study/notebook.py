"""What a notebook keeps, under its own name: tables, figures, claims."""

import pandas as pd
from matplotlib.figure import Figure

from srdyn.study.claims import claims
from srdyn.study.run import figure_files, store


def first_look(**read: object) -> None:
    """Say that `quick` cuts parameters down, and to what, a line each."""
    print("quick = True: less is read than the parameters say (`if quick` in this cell), at most")
    print(*(f"  {name} = {value}" for name, value in read.items()), sep="\n")


class Run:
    """A notebook's run: what it keeps is named `<stem>_<name>`, or `<stem>` where the name is empty.

    `parameters` are what the tables hang on; they stand in every table's side file, and in the run's record with the
    versions and the machine. From then on pandas shows texts in tables whole: verdicts name their nulls.
    """

    def __init__(self, stem: str, **parameters: object) -> None:
        self.stem, self.parameters, self.claimed = stem, parameters, set()
        pd.set_option("display.max_colwidth", None)
        store.save_record(stem, store.run_record(parameters=parameters))

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep a table (`store.save_table`); return it as it is read back."""
        store.save_table(frame, self._named(name), meta={"parameters": self.parameters})
        return store.load_table(self._named(name))

    def figure(self, name: str, figure: Figure) -> Figure:
        """Keep a figure (`figure_files.save`); return it, to be shown."""
        figure_files.save(figure, self._named(name))
        return figure

    def claim(self, claim_id: str, *measured: pd.DataFrame, registered: str = "first") -> pd.DataFrame:
        """Keep what was measured for a claim, models and nulls by their column `source`; return the judged rows."""
        self.claimed.add(claim_id)
        return claims.record(claim_id, pd.concat(measured, ignore_index=True), run=self.stem, registered=registered)

    def verdicts(self) -> pd.DataFrame:
        """The verdicts on this run's claims, each with the value that decides it; those by the second rules."""
        book, columns = claims.both(), ["claim", "kind", "verdict", "leading", "second"]
        found = book.loc[book["claim"].isin(self.claimed), columns].reset_index(drop=True)
        return found.drop(columns="second") if found["second"].isna().all() else found

    def _named(self, name: str) -> str:
        return f"{self.stem}_{name}" if name else self.stem
