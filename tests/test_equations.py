"""The ledger has teeth: alter the function that computes an equation, and its badge fails."""

import inspect
from functools import cache

import matplotlib
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from networks import same_numbers_every_time  # noqa: F401
from pages import NOTEBOOKS, Page, equations
from swaps import swap

import diffbook_lib
from diffbook_lib.checks import CheckFailed

matplotlib.use("Agg")
CHECKED = [
    pytest.param(path, label, entry, id=f"{path.stem}: {label}")
    for path in NOTEBOOKS
    for label, entry in equations(path.stem).items()
    if "function" in entry
]
page = cache(Page)


def found(name):
    """A function or method by its dotted name below the library, and its name in the ledger."""
    thing = diffbook_lib
    for part in name.split("."):
        thing = getattr(thing, part) if hasattr(thing, part) else import_part(thing, part)
    return thing.fget if isinstance(thing, property) else thing


def import_part(parent, part):
    return __import__(f"{parent.__name__}.{part}", fromlist=[part])


@pytest.mark.slow
@pytest.mark.parametrize(("path", "label", "entry"), CHECKED)
def test_the_badge_of_an_equation_fails_when_its_function_is_altered(
    path, label, entry, monkeypatch
):
    code = compile(page(path).needed_by(label), f"{path.stem}: {label}", "exec")
    exec(code, {"__name__": "page"})  # holds
    swap(monkeypatch, found(entry["function"]), *entry["altered"])
    with pytest.raises(CheckFailed):
        exec(code, {"__name__": "page"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_list_of_equations_and_the_checks_name_the_same(path):
    listed = {label for label, entry in equations(path.stem).items() if "function" in entry}
    assert listed == page(path).labels() & set(equations(path.stem))


@pytest.mark.parametrize(("path", "label", "entry"), CHECKED)
def test_the_alteration_stands_once_in_the_function(path, label, entry):
    old, new = entry["altered"]
    assert inspect.getsource(inspect.unwrap(found(entry["function"]))).count(old) == 1
    assert old != new


def test_a_check_takes_with_it_what_it_needs(tmp_path):
    sources = [
        "from diffbook_lib.checks import check\nimport torch as t\nslow = t.ones(3)",
        "a, b = 1, 2\ntable = {}\nunused = slow.sum()",
        "for k in range(2):\n    table[k] = a",
        'check("line, twice", table[0], 1.0, way="sight")',
        'check("claim", b, 2)',
    ]
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells), tmp_path / "p.ipynb")
    small = Page(tmp_path / "p.ipynb")
    assert small.labels() == {"line"}
    needed = small.needed_by("line")
    assert "unused" not in needed and "slow" not in needed and "claim" not in needed
    exec(needed, {})
