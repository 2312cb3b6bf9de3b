"""The house style of the pages' sources: what is folded, how long visible code is, and that no
measured number is typed."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from pages import NOTEBOOKS, ROOT, cells, tags

KINDS = {"setup", "check", "plot", "source", "experiment"}
FOLDED = KINDS - {"experiment"}
LINES, COLUMNS = 15, 86  # of code that a reader sees
pages = pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
TYPED = yaml.safe_load((Path(__file__).parent / "typed_numbers.yaml").read_text()) or {}

NUMBER = r"\d[\d.,]*(?: ?[–-] ?\d[\d.,]*)?"
UNIT = (
    r"(?:%|per ?cent|ms|s|min|h|seconds?|minutes?|hours?|bits?|bpd|[kMG]i?B|calls?|times|points?)"
)
MEASURE = r"(?:distances?|shares?|loss|errors?|accuracy|FID|variance|bits|NFE)"
MEASURED = [
    rf"{NUMBER}\$?[\s-]?{UNIT}(?![\w])",  # beside a unit
    rf"{MEASURE}\W+(?:\w+\W+){{0,3}}?\$?{NUMBER}",  # beside a measure
    r"(?<![\w.$=\\])\$?-?\d+\.\d+(?![\w.])",  # a decimal by itself
]
PROSE_ONLY = [
    r"```.*?```",
    r"^:::\{.*?$|^:label:.*?$|^:class:.*?$",
    r"\$\$.*?\$\$(?: \([\w-]+\))?",
    r"\{[\w:]+\}`[^`]*`",
    r"`[^`]*`",
    r"\$[^$]*(?:=|\\|[a-zA-Z])[^$]*\$",  # a formula; a number alone in dollars is a number
]


def prose(markdown: str) -> str:
    """What is left of a cell without code, roles, formulas and directives."""
    for pattern in PROSE_ONLY:
        markdown = re.sub(pattern, " ", markdown, flags=re.DOTALL | re.MULTILINE)
    return markdown


def typed(markdown: str, allowed: list[str]) -> list[str]:
    """The numbers that look measured, each with its surroundings."""
    for text in allowed:
        markdown = markdown.replace(text, " ")
    text = prose(markdown)
    found = [match for pattern in MEASURED for match in re.finditer(pattern, text)]
    return [" ".join(text[max(0, m.start() - 40) : m.end() + 20].split()) for m in found]


@pages
def test_no_measured_number_is_typed(page):
    allowed = [entry["text"] for entry in TYPED.get(page.stem, [])]
    found = [line for cell in cells(page, "markdown") for line in typed(cell.source, allowed)]
    assert found == []


@pytest.mark.parametrize("page", sorted(TYPED))
def test_an_exception_stands_on_its_page_and_has_a_reason(page):
    path = next(ROOT.glob(f"book/{page}.*"))
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for entry in TYPED[page]:
        assert text.count(entry["text"]), f"{page} no longer says {entry['text']!r}"
        assert len(entry["reason"]) > 5


@pytest.mark.parametrize(
    "sentence",
    [
        "It took about 185 s on one core.",
        "It ran in 4.5 minutes.",
        "The share falls to $0.115$ at once.",
        "A Fréchet distance of 67 was found.",
        "Three per cent is 3 per cent.",
        "It is 18 % off.",
        "At 20 calls it is ahead.",
        "It lifts 0.115 to more.",
        "each pixel alone needs 2.45 bits",
        "in 1–2 min",
    ],
)
def test_a_number_put_back_is_found(sentence):
    assert typed(sentence, [])


@pytest.mark.parametrize(
    "sentence",
    [
        "With $M = 0.25$ and $\\beta = 4$ it is critical.",
        "It took {glue:text}`seconds` on one core.",
        "Eq. 3 of {cite:t}`edm`, in `x = 0.5 s`.",
        "$$ x = 0.5 $$ (half)",
        "The data are 8×8 scans with 17 grey levels.",
        "of order two",
        "Three seeds each.",
    ],
)
def test_definitions_and_inserted_numbers_are_not(sentence):
    assert typed(sentence, []) == []


@pages
def test_a_cell_is_of_one_kind_and_jupyterlab_folds_what_the_page_folds(page):
    for cell in cells(page, "code"):
        kind = KINDS & set(tags(cell))
        assert len(kind) == 1, f"one tag of {sorted(KINDS)} for:\n{cell.source[:200]}"
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden == bool(kind & FOLDED), f"source_hidden is {hidden} in:\n{cell.source[:200]}"


@pages
def test_visible_code_is_short(page):
    for cell in cells(page, "code"):
        if "experiment" in tags(cell):
            lines = cell.source.splitlines()
            assert len(lines) <= LINES, f"{len(lines)} lines:\n{cell.source}"
            assert max(map(len, lines)) <= COLUMNS, cell.source


@pages
def test_nothing_is_printed(page):
    for cell in cells(page, "code"):
        assert not re.search(r"^\s*print\(", cell.source, re.MULTILINE), cell.source


@pages
def test_a_check_cell_ends_in_its_badge(page):
    for cell in cells(page, "code"):
        if "check" in tags(cell):
            last = ast.parse(cell.source).body[-1]
            assert isinstance(last, ast.Expr), f"the badge is not shown:\n{cell.source[-200:]}"


@pages
def test_a_page_marks_its_first_sample_and_its_experiment(page):
    marked = [tag for cell in cells(page, "code") for tag in tags(cell)]
    assert marked.count("generated") == marked.count("digits") == 1
