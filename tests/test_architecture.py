"""The library's layers: imports go down only, methods know only tensors, importing it is light."""

import ast
import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import miniature
import pytest

LIBRARY = Path(__file__).parents[1] / "diffbook_lib"

METHODS = ("cld", "constrained", "consistency", "edm2", "ardm")
LAYERS = {
    "errors": -1,  # which all may raise
    **dict.fromkeys(("", "rng", "files", "bars"), 0),  # "": diffbook_lib itself
    **dict.fromkeys(("nets", "ema", "exact"), 1),
    "diffusion": 2,
    "samplers": 3,
    **dict.fromkeys(METHODS, 4),
    **dict.fromkeys(("data", "specs"), 5),
    "metrics": 6,
    "runs": 7,
    **dict.fromkeys(("figures", "checks"), 8),
    "prose": 9,
    "__main__": 10,
}
TOOLS = {"errors", "files"}  # for what deals with files and users
# mathematics, which knows no files, devices, plots or command line
SUBJECT = {"rng", "nets", "ema", "exact", "diffusion", "samplers", *METHODS}
LONGEST = 300  # lines of a file of the library
LONGEST_OF = {"runs/presets.py": 220}
NOTEBOOK_LINES = 130  # non-blank lines of code of a run notebook
SHARED_LINES = 4  # as many identical lines one after the other belong into the library
FORBIDDEN = {
    *("IPython", "PIL", "accelerate", "click", "ipywidgets", "matplotlib", "nbformat", "os"),
    *("papermill", "pathlib", "pooch", "pydantic", "requests", "safetensors", "shutil"),
    *("submitit", "subprocess", "tensorboard", "urllib", "yaml"),
}
HEAVY = {
    *("IPython", "accelerate", "matplotlib", "nbformat", "papermill", "pooch", "pydantic"),
    *("scipy", "sklearn", "submitit", "tensorboard", "torchdiffeq", "torchmetrics"),
}
MODULES = sorted(LIBRARY.rglob("*.py"))
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY))
)


def room(path: Path) -> str:
    """The layer entry a file belongs to: cld for cld.py and for cld/kernel.py."""
    first = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    """The library's own rooms that a file imports."""
    parts = [name.split(".") for name in imports(path)]
    inner = {name[1] if len(name) > 1 else "" for name in parts if name[0] == "diffbook_lib"}
    return {name if name in LAYERS else "" for name in inner}


@each_module
def test_imports_go_down_only(path):
    here = room(path)
    assert here in LAYERS, f"give {here!r} a layer in {__file__}"
    for other in rooms_imported(path) - {here, ""}:
        message = f"{here} (layer {LAYERS[here]}) imports {other} (layer {LAYERS[other]})"
        assert LAYERS[other] < LAYERS[here], message


@each_module
def test_the_subject_knows_no_files_plots_or_command_line(path):
    if room(path) in SUBJECT:
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN
        assert not rooms_imported(path) & TOOLS


@each_module
def test_no_module_uses_anothers_privates(path):
    for name in imports(path):
        parts = name.split(".")
        private = [part for part in parts[1:] if part.startswith("_") and part != "__version__"]
        if parts[0] == "diffbook_lib" and room(path) not in parts:
            assert not private, f"{name} is private"


@each_module
def test_public_functions_and_classes_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    if not tree.body:
        return  # an empty __init__
    kinds = ast.FunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    assert ast.get_docstring(tree), "the module has no docstring"
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@each_module
def test_files_are_short(path):
    most = LONGEST_OF.get(path.relative_to(LIBRARY).as_posix(), LONGEST)
    assert len(path.read_text().splitlines()) <= most


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("runs/*.py")), ids=lambda path: path.name)
def test_the_run_system_names_no_method(path):
    """Neither in code nor in words: it finds them by name."""
    assert set(re.findall(r"\w+", path.read_text())) & {*METHODS} == set()


def test_the_test_sees_wrong_arrows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", tmp_path)
    (tmp_path / "cld").mkdir()
    path = tmp_path / "cld" / "kernel.py"
    path.write_text("def f():\n    import diffbook_lib.runs.x\n    from diffbook_lib import data\n")
    assert rooms_imported(path) == {"runs", "data"}
    assert room(path) == "cld"
    with pytest.raises(AssertionError, match=r"cld \(layer 4\) imports"):
        test_imports_go_down_only(path)
    path.write_text("from diffbook_lib.errors import Refused\n")
    test_imports_go_down_only(path)
    with pytest.raises(AssertionError):
        test_the_subject_knows_no_files_plots_or_command_line(path)
    path.write_text("from ..samplers import heun\n")
    with pytest.raises(AssertionError, match="relative import"):
        test_imports_go_down_only(path)


def code_cells(notebook: Path) -> list[dict]:
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def code_lines(cells: list[dict]) -> list[str]:
    """The lines of code cells, without blank ones."""
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return [line.strip() for line in lines if line.strip()]


def runs_of_lines(notebook: Path) -> set[tuple[str, ...]]:
    """What stands in a cell one line after the other, beyond the parameters cell and the one that
    starts the run."""
    found: set[tuple[str, ...]] = set()
    for cell in code_cells(notebook):
        tags = cell["metadata"].get("tags", [])
        if "parameters" not in tags and "runs.collect(" not in "".join(cell["source"]):
            lines = code_lines([cell])
            found |= set(zip(*(lines[i:] for i in range(SHARED_LINES)), strict=False))
    return found


NOTEBOOKS = sorted((LIBRARY.parent / "nbs").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_notebooks_are_short(notebook):
    assert len(code_lines(code_cells(notebook))) <= NOTEBOOK_LINES


@pytest.mark.parametrize(
    "pair", [*combinations(NOTEBOOKS, 2)], ids=lambda pair: f"{pair[0].stem}-{pair[1].stem}"
)
def test_run_notebooks_share_no_code(pair):
    first, second = map(runs_of_lines, pair)
    assert first & second == set()


def test_the_test_sees_shared_code(tmp_path):
    """The miniatures' notebooks share the start and cells of up to three lines."""
    miniature.write(tmp_path)
    notebooks = [tmp_path / "nbs" / f"{method}.ipynb" for method in miniature.METHODS]
    test_run_notebooks_share_no_code(notebooks)
    test_run_notebooks_are_short(notebooks[0])
    copied = {("sample",): miniature.COUNTS[("sample",)]}
    miniature.write_notebook(tmp_path, "ladder", copied)
    with pytest.raises(AssertionError, match="blank"):
        test_run_notebooks_share_no_code(notebooks)
    lines = "a = 1\n\n" * (NOTEBOOK_LINES + 1)
    miniature.write_notebook(tmp_path, "ladder", {(): lines})
    with pytest.raises(AssertionError):
        test_run_notebooks_are_short(notebooks[1])


def test_importing_the_library_is_light():
    code = "import diffbook_lib, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(loaded) & HEAVY
