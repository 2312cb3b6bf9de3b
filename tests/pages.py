"""The pages' sources: their cells, and the cells that a check needs."""

import ast
import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import diffbook_ledger  # noqa: E402

CHECKS = {"check", "check_less", "check_within"}
CHANGING = {"append", "extend", "update"}  # methods that change what a name holds


def cells(page: Path, kind: str) -> list[nbformat.NotebookNode]:
    """The cells of one kind, markdown or code."""
    notebook = nbformat.read(page, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def equations(page: str) -> dict[str, dict]:
    """The entries of a page's list of equations, as the ledger reads them."""
    return diffbook_ledger.entries(ROOT / "book" / "equations", page)


class Statement:
    """A statement of a page: which names it uses, sets anew, and changes in place."""

    def __init__(self, node: ast.stmt) -> None:
        self.node = node
        code = compile(ast.Module(body=[node], type_ignores=[]), "page", "exec")
        self.sets = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}
        self.uses = set(_loads(code))
        self.changes = {
            part.value.id
            for part in ast.walk(node)
            if isinstance(part, ast.Subscript | ast.Attribute)
            and isinstance(part.value, ast.Name)
            and (isinstance(part.ctx, ast.Store) or getattr(part, "attr", "") in CHANGING)
        }


def _loads(code: CodeType) -> Iterator[str]:
    """The global names that a piece of code and the functions in it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _loads(inner)


def checks_of(code: str) -> set[str]:
    """The labels that a piece of code checks: the names of its checks up to a comma."""
    labels = set()
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in CHECKS and call.args:
            name = call.args[0]
            if isinstance(name, ast.JoinedStr) and name.values:
                name = name.values[0]
            if isinstance(name, ast.Constant) and "way" in {k.arg for k in call.keywords}:
                labels.add(str(name.value).partition(",")[0])
    return labels


class Page:
    """A page as statements; `needed_by(label)` are those that the checks of an equation need."""

    def __init__(self, path: Path) -> None:
        transform = TransformerManager().transform_cell
        self.codes = [transform(cell.source) for cell in cells(path, "code")]
        self.cells = [[Statement(n) for n in ast.parse(code).body] for code in self.codes]

    def labels(self) -> set[str]:
        """The equations that have a check on this page."""
        return {label for code in self.codes for label in checks_of(code)}

    def needed_by(self, label: str) -> str:
        """The code of the cells that check an equation, with all that they need and no more."""
        wanted: set[str] = set()
        kept: list[ast.stmt] = []
        for code, statements in reversed(list(zip(self.codes, self.cells, strict=True))):
            checking = label in checks_of(code)
            for statement in reversed(statements):
                if checking or (statement.sets | statement.changes) & wanted:
                    kept.append(statement.node)
                    wanted = (wanted - statement.sets) | statement.uses
        return ast.unparse(ast.Module(body=kept[::-1], type_ignores=[]))
