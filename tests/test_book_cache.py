"""The cache of executed pages: a page runs again when something changed that it can reach, and a
change taken back finds the old results."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import diffbook_cache  # noqa: E402
import diffbook_reach  # noqa: E402

SHARED = ("diffbook_lib/data/load.py", "diffbook_lib/specs/base.py", "diffbook_lib/rng.py")
OWN = (  # of the method cld
    "diffbook_lib/cld/process.py",
    "diffbook_lib/specs/cld.py",
    "nbs/presets/cld/digits.yaml",
    "results/cld/digits.json",
    "nbs/cld.ipynb",
)
PAGES_OF_FAKE = ("cld", "edm2", "foundations", "lenses")
FAKE = {
    "_toc.yml": "format: jb-book\nroot: book/index\nparts: [{chapters: ["
    + ", ".join(f"{{file: book/{name}}}" for name in PAGES_OF_FAKE)
    + "]}]",
    "book/index.md": "# Index",
    "diffbook_lib/__init__.py": "",
    "diffbook_lib/__main__.py": "",
    "diffbook_lib/runs/jobs.py": "",
    **dict.fromkeys(SHARED, ""),
    "diffbook_lib/cld/__init__.py": "from diffbook_lib.cld.process import CLD",
    "diffbook_lib/edm2.py": "",
    "diffbook_lib/specs/edm2.py": "",
    **{path: "" for path in OWN if not path.endswith(".ipynb")},
    "nbs/presets/edm2/toy.yaml": "",
    "results/edm2/toy.json": "",
    "results/published.yaml": "- {method: cld, value: 1}\n- {method: edm2, value: 2}",
}


def write(root: Path, name: str, content: str, *more: str) -> None:
    """A file of a fake repository; a notebook's contents are the sources of its cells."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ipynb":
        cells = [nbformat.v4.new_code_cell(source) for source in (content, *more)]
        for index, cell in enumerate(cells):
            cell.id = f"cell-{index}"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    else:
        path.write_text(content)


@pytest.fixture
def repository(tmp_path):
    """Two methods and four pages: of each method, of none, and one that imports cld and speaks of
    the recorded runs of edm2."""
    for name, content in FAKE.items():
        write(tmp_path, name, content)
    write(tmp_path, "nbs/cld.ipynb", "from diffbook_lib import cld")
    write(tmp_path, "nbs/edm2.ipynb", "from diffbook_lib import edm2")
    write(tmp_path, "book/cld.ipynb", "%matplotlib inline", "from diffbook_lib import cld")
    write(tmp_path, "book/edm2.ipynb", "from diffbook_lib import edm2, rng")
    write(tmp_path, "book/foundations.ipynb", "from diffbook_lib import data")
    write(
        tmp_path,
        "book/lenses.ipynb",
        "def compare():\n    from diffbook_lib.cld.process import CLD",
        'picture = root / f"results/edm2/{name}.png"',
    )
    return tmp_path


def states(root: Path) -> dict[str, Path]:
    """The present cache of each page."""
    return {page.stem: diffbook_cache.folder(page, root) for page in diffbook_cache.notebooks(root)}


def change(root: Path, name: str, content: str = "changed = True") -> set[str]:
    """The pages that run again after a change, which is then taken back."""
    before, path = states(root), root / name
    old = path.read_bytes() if path.exists() else None
    write(root, name, content)
    after = states(root)
    path.unlink() if old is None else path.write_bytes(old)
    assert states(root) == before, "a change taken back finds the old results"
    return {page for page in before if before[page] != after[page]}


@pytest.mark.parametrize("name", [*SHARED, "diffbook_lib/metrics/new.py"])
def test_a_change_of_what_all_methods_share_runs_every_page_again(repository, name):
    assert change(repository, name) == set(PAGES_OF_FAKE)


@pytest.mark.parametrize("name", [*OWN, "nbs/presets/cld/new.yaml", "results/cld/digits.png"])
def test_a_change_inside_a_method_runs_its_chapter_again(repository, name):
    imported = {"lenses"} if name == "diffbook_lib/cld/process.py" else set()
    assert change(repository, name) == {"cld", *imported}


def test_a_method_named_in_a_text_is_reached_with_its_runs(repository):
    for name in ("results/edm2/toy.json", "diffbook_lib/specs/edm2.py", "diffbook_lib/edm2.py"):
        assert change(repository, name) == {"edm2", "lenses"}


def test_published_figures_belong_to_their_method(repository):
    figures = FAKE["results/published.yaml"].replace("value: 1", "value: 3")
    assert change(repository, "results/published.yaml", figures) == {"cld"}


def test_a_page_reaches_what_its_imports_import(repository):
    assert change(repository, "diffbook_lib/edm2.py") == {"edm2", "lenses"}
    write(repository, "diffbook_lib/data/__init__.py", "from ..edm2 import power")
    assert change(repository, "diffbook_lib/edm2.py") == {"edm2", "lenses", "foundations"}
    write(repository, "diffbook_lib/cld/process.py", "import diffbook_lib.edm2")
    assert change(repository, "diffbook_lib/edm2.py") == set(PAGES_OF_FAKE)


def test_a_page_reaches_what_its_run_notebook_imports(repository):
    write(repository, "nbs/cld.ipynb", "from diffbook_lib import cld, edm2")
    assert change(repository, "diffbook_lib/edm2.py") == {"cld", "edm2", "lenses"}
    assert change(repository, "results/edm2/toy.json") == {"edm2", "lenses"}


@pytest.mark.parametrize("code", ["specs.methods()", "from diffbook_lib.specs import methods"])
def test_a_page_that_asks_for_all_methods_reaches_all(repository, code):
    write(repository, "book/foundations.ipynb", f"from diffbook_lib import specs\n{code}")
    assert change(repository, "results/cld/digits.json") == {"cld", "foundations"}


@pytest.mark.parametrize("name", ["diffbook_lib/__main__.py", "diffbook_lib/runs/jobs.py"])
def test_what_no_page_can_reach_runs_none_again(repository, name):
    assert change(repository, name) == set()
    assert change(repository, "README.md") == set()


def test_the_pages_of_the_book_reach_their_own_method_only():
    """The Foundations check the general equations on the process of CLD: its mathematics alone."""
    pages = [page for page in diffbook_cache.notebooks(ROOT) if page.stem in ("cld", "foundations")]
    reached = {page.stem: diffbook_reach.reached_methods(page, ROOT) for page in pages}
    assert reached["cld"] == ({"cld"}, {"cld"})
    assert reached["foundations"] == ({"cld"}, set())


def test_only_the_newest_caches_of_a_page_are_kept_and_no_others(repository):
    caches = diffbook_cache.folder(repository / "book" / "cld.ipynb", repository).parent
    for age, name in enumerate("abcdef"):
        (caches / name).mkdir(parents=True)
        os.utime(caches / name, (1e9 + age, 1e9 + age))
    (caches.parent / "no-page").mkdir()
    diffbook_cache.prune(repository)
    present = states(repository)
    assert {path.name for path in caches.iterdir()} == {"e", "f", present["cld"].name}
    assert {path.name for path in caches.parent.iterdir()} == set(PAGES_OF_FAKE)
    for page in PAGES_OF_FAKE:
        assert present[page].is_dir()


CONFIG = """
title: Fake
only_build_toc_files: true
execute: {execute_notebooks: cache, stderr_output: error}
sphinx: {local_extensions: {diffbook_pages: book/_ext}, config: {nb_execution_raise_on_error: true}}
"""


def make(root: Path) -> str:
    """What `make book` does, for a fake repository with a copy of the extensions."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    said = ""
    for command in (
        [sys.executable, "book/_ext/diffbook_cache.py"],
        [tools / "jupyter-book", "build", ".", "-W", "-n", "--keep-going"],
    ):
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    return said


@pytest.mark.slow
def test_a_miniature_book_runs_and_shows_again_only_what_changed(repository):
    shutil.copytree(ROOT / "book" / "_ext", repository / "book" / "_ext")
    write(repository, "_config.yml", CONFIG)
    toc = "format: jb-book\nroot: book/index\nchapters: [{file: book/cld}, {file: book/edm2}]"
    write(repository, "_toc.yml", toc)
    for method in ("cld", "edm2"):
        write(repository, f"diffbook_lib/{method}.py", "WORD = 'first'")
        code = f"import time\nfrom diffbook_lib.{method} import WORD\nprint(WORD, time.time_ns())"
        write(repository, f"book/{method}.ipynb", code)
        notebook = nbformat.read(repository / f"book/{method}.ipynb", as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# Title", id="title"))
        nbformat.write(notebook, repository / f"book/{method}.ipynb")
    shutil.rmtree(repository / "diffbook_lib" / "cld")
    sources = [(repository / f"book/{method}.ipynb").read_bytes() for method in ("cld", "edm2")]

    def shown(method: str) -> str:
        page = (repository / "_build" / "html" / "book" / f"{method}.html").read_text()
        assert "Running this page took" in page
        return re.search(r"(first|second) \d{15,}", page)[0]

    assert "running cld, edm2" in make(repository)
    first = {method: shown(method) for method in ("cld", "edm2")}
    write(repository, "diffbook_lib/cld.py", "WORD = 'second'")
    assert "running cld (" in make(repository)
    assert shown("cld").startswith("second") and shown("edm2") == first["edm2"]
    write(repository, "diffbook_lib/cld.py", "WORD = 'first'")
    assert "every notebook is in the cache" in make(repository)
    assert {method: shown(method) for method in ("cld", "edm2")} == first
    assert diffbook_cache.pending(repository) == []
    now = [(repository / f"book/{method}.ipynb").read_bytes() for method in ("cld", "edm2")]
    assert now == sources
