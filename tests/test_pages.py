"""The book's own extension on a small book: badges, folds, numbers, and the ledger."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from diffbook_lib.checks import check, check_less, together

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import diffbook_ledger  # noqa: E402

CONF = """
extensions = ["myst_nb", "diffbook_fold", "diffbook_numbers", "diffbook_ledger"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
nb_execution_mode = "off"
numfig = math_numfig = True
math_eqref_format = "({number})"
root_doc = "book/index"
"""
INDEX = """# Book

```{toctree}
:numbered:
page
ledger
```
"""
LEDGER = """# Ledger

```{ledger}
```
"""
EQUATIONS = """
line:
  paper: Eq. 9
  function: exact.line
  altered: ["+", "-"]
circle: {without: it names a symbol}
"""
PAGE = """# Page

See {fig}`second` and {tab}`list`.

$$ y = a + b $$ (line)

$$ r = 1 $$ (circle)

:::{fold-start} A proof with $x$
:::

Folded words.

:::{fold-end}
:::
"""


def shown(html, tag, source):
    """A cell with its output."""
    output = new_output("display_data", data={"text/html": html, "text/plain": "-"})
    return new_code_cell(source, metadata={"tags": [tag]}, outputs=[output])


def caption(kind, name):
    place = f'<span class="diffbook-number" data-kind="{kind}" data-name="{name}"></span>'
    return f"<figcaption>{place}Words.</figcaption>"


BADGE = together(
    check("line", [1.0], [1], way="a ruler"), check_less("short", 1, 2), check_less("s", 1, 2)
)
CELLS = [
    new_markdown_cell(PAGE),
    shown(BADGE._repr_html_(), "check", "check_code = 1"),
    shown(caption("Figure", "first"), "plot", "plot_code = 1"),
    shown(caption("Figure", "second"), "plot", "more_code = 1"),
    shown(caption("Table", "list"), "setup", "setup_code = 1"),
    shown("<p>listing</p>", "source", "source_code = 1"),
    shown("<p>result</p>", "experiment", "experiment_code = 1"),
]


def build(folder, cells=CELLS, equations=EQUATIONS):
    """The HTML of the page and of the ledger, and the warnings."""
    (folder / "book" / "equations").mkdir(parents=True)
    (folder / "conf.py").write_text(CONF)
    (folder / "book" / "index.md").write_text(INDEX)
    (folder / "book" / "ledger.md").write_text(LEDGER)
    (folder / "book" / "equations" / "page.yaml").write_text(equations)
    metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    notebook = new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, folder / "book" / "page.ipynb")
    warnings = (folder / "warnings").open("w+")
    with patch_docutils(), docutils_namespace():
        app = Sphinx(folder, folder, folder / "out", folder / "doc", "html", {}, None, warnings)
        app.build()
    warnings.seek(0)
    pages = [(folder / "out" / "book" / f"{n}.html").read_text() for n in ("page", "ledger")]
    return *pages, warnings.read()


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    page, ledger, warnings = build(tmp_path_factory.mktemp("book"))
    assert warnings == ""
    return page, ledger


def test_a_badge_is_a_line_with_the_equations_number_and_folds_its_code(book):
    line = (
        '<span class="diffbook-badge"><span>✓</span> (1.1) against a ruler: 1 value, equal; '
        "2 claims of the text hold</span></summary>"
    )
    page = book[0]
    assert f'<details class="diffbook-check"><summary>{line}' in page
    details = page[page.index("diffbook-check") :]
    details = details[: details.index("</details>")]
    assert "check_code" in details
    assert "<li>short: 1 &lt; 2</li>" in details


def test_the_code_of_a_figure_is_folded_under_it_and_that_of_a_set_up_before_it(book):
    page = book[0]
    assert page.index("Figure 1.1.") < page.index("Code of the figure") < page.index("plot_code")
    assert page.index("Set-up") < page.index("setup_code") < page.index("Table 1.1.")


def test_a_listing_stands_without_its_call_and_an_experiment_with_its_code(book):
    page = book[0]
    assert "listing" in page and "source_code" not in page
    assert page.index("experiment_code") < page.index("<p>result</p>")


def test_references_show_the_numbers_of_captions(book):
    assert '<a href="#fig-second">Figure 1.2</a>' in book[0]
    assert '<a href="#tab-list">Table 1.1</a>' in book[0]


def test_a_folded_block_shows_its_title_only(book):
    page = book[0]
    fold = page[page.index('<details class="diffbook-fold">') :]
    title, inside = fold.split("</summary>")[:2]
    assert "A proof with" in title and "math" in title
    assert "Folded words." in inside[: inside.index("</details>")]


def test_the_ledger_names_number_paper_function_and_check(book):
    ledger = book[1]
    row = ledger[ledger.index('<a href="page.html#equation-line">(1.1)</a>') :]
    row = row[: row.index("</tr>")]
    for text in ("Eq. 9", "<code>exact.line</code>", "against a ruler: 1 value, equal</td>"):
        assert text in row
    assert "not checked: it names a symbol" in ledger


def test_what_is_not_there_is_a_warning(tmp_path):
    text = "# Page\n\n{fig}`nothing`\n\n$$ y = a $$ (bare)"
    wrong = [new_markdown_cell(text), shown(BADGE._repr_html_(), "check", "1")]
    wrong += [shown("<p>no badge</p>", "check", "1")]
    warnings = build(tmp_path, wrong)[2]
    for fault in (
        "the page has no figure named 'nothing'",
        "there is no equation 'line'",
        "equation 'bare' has neither a badge nor a reason",
        "a cell with the tag check shows no badge",
    ):
        assert fault in warnings


ENTRY = {"function": "a.b", "altered": ["+", "-"]}


@pytest.mark.parametrize(
    ("labels", "known", "shown", "fault"),
    [
        (["a"], {}, {}, "neither a badge nor a reason"),
        (["a"], {"a": ENTRY}, {}, "neither a badge nor a reason"),
        (["a"], {"a": {"without": "x"}}, {"a": "✓"}, "a badge and a reason"),
        (["a"], {"a": {"paper": "1"}}, {"a": "✓"}, "no function"),
        ([], {"a": ENTRY}, {}, "there is no equation 'a'"),
    ],
)
def test_a_ledger_with_a_gap_is_refused(labels, known, shown, fault):
    assert any(fault in line for line in diffbook_ledger.faults(labels, known, shown))


def test_a_ledger_without_gaps_is_not():
    known = {"a": ENTRY, "b": {"without": "x"}}
    assert diffbook_ledger.faults(["a", "b"], known, {"a": "✓"}) == []
