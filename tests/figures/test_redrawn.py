"""Every committed figure is the one that its committed tables give."""

import pytest
from committed import BESIDE, EVERY, Case, alone_in_main, verdicts

from srdyn.loading import files
from srdyn.study.run import figure_files
from srdyn.study.trials.effects import KEPT

FIGURES = files.root() / "figures"
BITS = f"{BESIDE} and (probe.str.startswith('bits') or probe.str.startswith('ind'))"
ALL = [
    *EVERY,
    Case(
        "contrasts", "03_ablation_bits", ("03_ablation_differences", BITS), unit="bits per byte or token", better="left"
    ),
    Case("verdicts", "08_scorecard_main", lambda: verdicts(main=True)),
    Case("doses", "08_scorecard_removal_hybrid", ("08_scorecard_removal", "kind == 'hybrid'", "probe")),
    Case("doses", "08_scorecard_removal_pure", ("08_scorecard_removal", "kind == 'pure'", "probe")),
    Case("single_heads", "08_scorecard_heads", alone_in_main),
    Case("places", "04_pruning_sets", ("04_pruning_sets", f"probe == '{KEPT}'"), value="accuracy kept"),
]  # fmt: skip
QUICK = ("02_consistency", "05_mechanism")


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.png")), ids=lambda path: path.stem)
def test_committed_files_are_small_and_without_dates(path):
    assert path.stat().st_size <= 300_000
    content = path.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"CreationDate" not in content
    assert b"Type3" not in content


def test_every_committed_figure_is_redrawn():
    assert {path.stem for path in FIGURES.glob("*.png")} == {case.stem for case in ALL}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.stem, marks=[] if case.stem in QUICK else pytest.mark.slow)
        for case in ALL
        if case.name != "head_sizes"  # whose heads are kept in no table
    ],
)
def test_a_committed_figure_is_drawn_from_its_committed_tables(case):
    path = FIGURES / f"{case.stem}.png"
    assert figure_files._pixels(path, figure_files._png(case.figure())) <= figure_files._FEW
