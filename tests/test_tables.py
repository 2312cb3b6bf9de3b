"""Tables: numbers, spreads, grouped heads, the floor, what is marked, and what is refused."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffbook_lib import figures
from diffbook_lib.figures import tables


@pytest.fixture
def made(monkeypatch):
    """Makes a table and gives its HTML."""
    displayed = []
    monkeypatch.setattr(tables, "display", displayed.append)

    def make(columns=("sampler", "error"), rows=(("em", 2.0),), **changes):
        figures.table(columns, rows, **({"name": "t", "caption": "Errors."} | changes))
        return displayed[-1].data

    return make


def cells(html: str, tag: str = "t[dh]") -> list[list[str]]:
    """The inner HTML of the cells, row by row."""
    rows = re.findall("<tr>(.*?)</tr>", html)
    return [re.findall(f"<{tag}[^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_a_table_has_anchor_number_caption_and_a_box_that_scrolls(made):
    html = made(caption="A < B")
    assert html.startswith('<figure class="diffbook-table" id="tab-t"')
    number = '<span class="diffbook-number" data-kind="Table" data-name="t"></span>'
    assert f"<figcaption>{number}A &lt; B</figcaption>" in html
    assert 'tabindex="0" role="region"' in html and 'aria-label="A &lt; B"' in html


def test_numbers_stand_to_the_right_and_words_to_the_left(made):
    html = made(
        ("sampler", "calls", "note", "share"),
        [("em", 10, "slow <b>", "92 %"), ("heun", None, "fast", "–")],
    )
    sides = [re.findall("text-align:([a-z]+)", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    assert sides == [["left", "right", "left", "right"]] * 3
    assert cells(html)[1:] == [["em", "10", "slow &lt;b&gt;", "92 %"], ["heun", "–", "fast", "–"]]
    assert html.count('scope="row"') == 2 and html.count('scope="col"') == 4


@pytest.mark.parametrize(
    ("cell", "fmt", "text"),
    [
        (0.123456, ".3g", "0.123"),
        (-0.5, ".1f", "−0.5"),
        (12345.6, ".3g", "12,346"),
        (12345, ".3g", "12,345"),
        (np.float32(0.5), ".2f", "0.50"),
        (torch.tensor(0.25), ".3g", "0.25"),
        (figures.spread_of([1.0, 2.0, 4.5]), ".3g", "2.5 ± 1.8"),
        (figures.spread_of([99.0, 150.0]), ".3g", "124 ± 36"),
        (figures.spread_of([0.01, 0.012]), ".3g", "0.0110 ± 0.0014"),
        (figures.spread_of([1.0, 1.0]), ".3g", "1 ± 0"),
        (figures.spread_of([1.0, 2.0]), ".2f", "1.50 ± 0.71"),
        (SimpleNamespace(mean=2.0, std=0.1), ".3g", "2.00 ± 0.10"),
        (None, ".3g", "–"),
    ],
)
def test_how_a_cell_is_written(made, cell, fmt, text):
    assert cells(made(rows=[("a", cell)], fmt=fmt))[1][1] == text


def test_a_format_a_column(made):
    html = made(("a", "b", "c"), [("x", 0.5, 0.5)], fmt={"b": ".3f"})
    assert cells(html)[1] == ["x", "0.500", "0.5"]


def test_the_best_is_bold_with_what_is_not_told_apart(made):
    spread = figures.spread_of
    rows = [
        ("a", spread([1.0, 2.0]), 0.5),
        ("b", spread([1.5, 3.0]), 0.9),
        ("c", spread([8.0, 9.0]), 0.9),
        ("d", None, "not run"),
    ]
    html = made(("s", "fd", "share"), rows, better={"fd": "lower", "share": "higher"})
    bold = [[text.startswith("<strong>") for text in row] for row in cells(html)[1:]]
    assert bold == [
        [False, True, False],
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert 'title="lower is better">↓' in html and 'title="higher is better">↑' in html
    assert tables.NOTE in html and tables.NOTE not in made()


def test_heads_span_columns_and_the_floor_is_set_apart(made):
    html = made(
        ("s", "10", "20"),
        [("em", 1.0, 2.0)],
        heads=[("", 1), ("calls", 2)],
        floor=("real digits", 0.1, 0.2),
    )
    assert '<th colspan="2" scope="colgroup"' in html and '<td colspan="1"' in html
    foot = re.search("<tfoot>(.*)</tfoot>", html)[1]
    assert cells(foot) == [["real digits", "0.1", "0.2"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "caption is empty"),
        ({"name": "T"}, "lower case"),
        ({"rows": []}, "a row and two columns"),
        ({"columns": ("a",), "rows": [("b",)]}, "a row and two columns"),
        ({"rows": [("a", 1.0, 2.0)]}, "2 columns, but the row .* has 3"),
        ({"floor": ("a",)}, r"the row \['a'\] has 1"),
        ({"heads": [("a", 3)]}, "heads span 3 columns of 2"),
        ({"better": {"fd": "lower"}}, r"better names 'fd'; the columns are \['error'\]"),
        ({"better": {"error": "equal"}}, "lower or higher, not 'equal'"),
    ],
)
def test_wrong_tables_are_refused(made, changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_a_spread_needs_two_values():
    assert figures.spread_of(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(2**0.5))
    with pytest.raises(ValueError, match="two values or more"):
        figures.spread_of([1.0])
