"""Tables stay tables whatever their cells hold; a block is replaced and nothing around it."""

import pytest

from srdyn.loading import markdown

PAGE = "# Title\r\n<!-- card:begin -->\nold\n<!-- card:end -->\ntail, no newline"


def test_a_cell_holds_bars_and_line_breaks():
    lines = markdown.table(["a", "b"], [["x|y", "1\n2"], ["", "z"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", r"| x\|y | 1<br>2 |", "|  | z |"]


def test_only_the_block_is_replaced_and_twice_is_once():
    once = markdown.replace_block(PAGE, "card", "new\n")
    assert once == "# Title\r\n<!-- card:begin -->\n\nnew\n\n<!-- card:end -->\ntail, no newline"
    assert markdown.replace_block(once, "card", "new\n") == once


@pytest.mark.parametrize(
    "page",
    ["", "<!-- card:begin -->", PAGE + PAGE, "<!-- card:end --><!-- card:begin -->", PAGE.replace("card", "other")],
)
def test_without_its_markers_a_page_is_refused(page):
    with pytest.raises(ValueError, match="markers <!-- card:begin -->"):
        markdown.replace_block(page, "card", "new")
