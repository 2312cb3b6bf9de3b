"""The library's layers: imports go down only, methods know only tensors, importing it is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "diffbook_lib"

LAYERS = {
    "": 0,  # diffbook_lib itself: the version
    "rng": 0,
    "nets": 1,
    "exact": 1,
    "ema": 1,
    "diffusion": 2,
    "samplers": 3,
    "cld": 4,
    "constrained": 4,
    "consistency": 4,
    "edm2": 4,
    "ardm": 4,
    "data": 5,
    "checkpoint": 5,
    "presets": 5,
    "records": 6,
    "journal": 6,
    "train": 7,
    "metrics": 7,
    "results": 7,
    "figures": 8,
    "checks": 8,
    "jobs": 8,
    "estimate": 8,
    "__main__": 9,
}
SIDEWAYS = {("metrics", "train"), ("estimate", "jobs")}  # within one layer
SUBJECT = 4  # up to here: mathematics, which knows no files, devices, plots or command line
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
    package = ("diffbook_lib", *path.relative_to(LIBRARY).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
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
        down = LAYERS[other] < LAYERS[here] or (here, other) in SIDEWAYS
        assert down, f"{here} (layer {LAYERS[here]}) imports {other} (layer {LAYERS[other]})"


@each_module
def test_the_subject_knows_no_files_plots_or_command_line(path):
    if LAYERS.get(room(path), 0) <= SUBJECT:
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN


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


def test_the_test_sees_wrong_arrows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", tmp_path)
    (tmp_path / "cld").mkdir()
    path = tmp_path / "cld" / "kernel.py"
    path.write_text("def f():\n    from ..train import train\n    from diffbook_lib import jobs\n")
    assert rooms_imported(path) == {"train", "jobs"}
    assert room(path) == "cld"
    with pytest.raises(AssertionError, match=r"cld \(layer 4\) imports"):
        test_imports_go_down_only(path)


def test_importing_the_library_is_light():
    code = "import diffbook_lib, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(loaded) & HEAVY
