"""What the code of a page can reach in the repository.

Every page reaches the library that the methods share. The rest follows from the page itself: a
method that it imports, in one step or through what it imports, it reaches with its package. A
method that it is named after, or names in a text such as recorded("edm2", "digits"), it reaches
whole: package, specification, presets, results, published figures and run notebook, and what that
notebook reaches in turn.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from IPython.core.inputtransformer2 import TransformerManager

NOT_REACHED = (
    "__main__.py",
    "runs/jobs.py",
    "runs/launch.py",
)  # the command line, torchrun
LIBRARY = "diffbook_lib"


class Code(NamedTuple):
    """What a piece of code imports and which words it says."""

    imports: frozenset[str]  # dotted names; of `from a import b` it is a.b
    words: frozenset[str]  # texts, cut at each slash
    asks_for_all: bool  # calls specs.methods()


def methods(root: Path) -> set[str]:
    """The names that a chapter, a run notebook and a method share."""
    return {path.stem for path in root.glob("nbs/*.ipynb")}


def digest(page: Path, root: Path) -> str:
    """A hash of the names and contents of all that a page reaches."""
    imported, named = reached_methods(page, root)
    found = hashlib.sha256()
    for path in sorted(
        {*_shared(root), *_packages(root, imported | named), *_runs(root, named)}
    ):
        found.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    published = root / "results" / "published.yaml"
    if published.is_file():
        figures = yaml.safe_load(published.read_text()) or []
        reached = [figure for figure in figures if figure["method"] in named]
        found.update(json.dumps(reached, sort_keys=True).encode())
    return found.hexdigest()


def reached_methods(page: Path, root: Path) -> tuple[set[str], set[str]]:
    """The methods whose package a page imports, and those that it reaches whole."""
    known = methods(root)
    named = {page.stem} & known
    waiting, seen = [page, *_code_of_runs(root, named)], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        code = _read(file, root)
        waiting += _files(root, code.imports)
        if file.suffix == ".ipynb":
            new = (known if code.asks_for_all else known & code.words) - named
            named |= new
            waiting += _code_of_runs(root, new)
    packages = {path.relative_to(root).with_suffix("").parts[:2] for path in seen}
    return {name for name in known if (LIBRARY, name) in packages}, named


def _shared(root: Path) -> Iterator[Path]:
    """The modules that belong to no method."""
    known, library = methods(root), root / LIBRARY
    for path in library.rglob("*.py"):
        inner = path.relative_to(library)
        first, *rest = inner.with_suffix("").parts
        owner = rest[0] if first == "specs" and rest else first
        if owner not in known and inner.as_posix() not in NOT_REACHED:
            yield path


def _packages(root: Path, names: set[str]) -> Iterator[Path]:
    for name in names:
        yield from root.glob(f"{LIBRARY}/{name}.py")
        yield from root.glob(f"{LIBRARY}/{name}/**/*.py")


def _runs(root: Path, names: set[str]) -> Iterator[Path]:
    """Specification, run notebook, presets and results of methods."""
    for name in names:
        yield from _code_of_runs(root, {name})
        for kept in (f"nbs/presets/{name}", f"results/{name}"):
            yield from (path for path in (root / kept).rglob("*") if path.is_file())


def _code_of_runs(root: Path, names: set[str]) -> list[Path]:
    paths = (
        root / place
        for name in names
        for place in (f"{LIBRARY}/specs/{name}.py", f"nbs/{name}.ipynb")
    )
    return [path for path in paths if path.is_file()]


def _files(root: Path, imports: frozenset[str]) -> Iterator[Path]:
    """The files of the library that these imports execute, packages above them included."""
    for name in imports:
        parts = name.split(".")
        if parts[0] != LIBRARY:
            continue
        for end in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:end])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file():
                    yield path


def _read(path: Path, root: Path) -> Code:
    source = path.read_text()
    if path.suffix == ".ipynb":
        return _parse("\n".join(_cells(source)), "", path.name)
    return _parse(source, ".".join(path.relative_to(root).parent.parts), path.name)


def _cells(notebook: str) -> Iterator[str]:
    """The code cells as Python: magics become calls."""
    for cell in json.loads(notebook)["cells"]:
        if cell["cell_type"] == "code":
            yield TransformerManager().transform_cell("".join(cell["source"]))


@cache
def _parse(source: str, package: str, name: str) -> Code:
    imports, words, asks = set(), set(), False
    tree = ast.parse(source, name)
    for node in ast.walk(tree):  # what is for the type checker alone is not reached
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            start = (
                importlib.util.resolve_name(start, package) if node.level else start
            )
            imports |= {f"{start}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= set(node.value.split("/"))
        elif isinstance(node, ast.Attribute):
            asks |= node.attr == "methods"
    asks |= f"{LIBRARY}.specs.methods" in imports
    return Code(frozenset(imports), frozenset(words), asks)
