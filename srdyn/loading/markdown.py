"""Tables and marked blocks of Markdown."""

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a line for every row, each as long as `heads`; line breaks inside a cell become `<br>`."""
    cells = [[cell.strip().replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in (heads, *rows)]
    cells.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between the lines `<!-- name:begin -->` and `<!-- name:end -->`, in place of what was there.

    Raises ValueError unless both occur once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text needs the markers {begin} and {end} once each, in this order: put them in")
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"
