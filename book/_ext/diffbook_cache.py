"""Executes the book's notebooks into caches that notice a changed library.

jupyter-cache's own key is the code of the cells and nothing they import. So each page has caches
of its own, in folders named by a hash of what the page can reach: change one method and its
chapter runs again, change what all share and every page does, take the change back and the old
results are found. Run as a script, this fills the caches with one worker a core; the book's build
then finds every notebook there.
"""

import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import diffbook_reach
import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
KEEP = 3  # caches of a page, and executed notebooks in each, the newest
TIMEOUT = 600  # seconds a cell, as in _config.yml
ENVIRONMENT = {
    "DIFFBOOK_PAGE": "1",  # moving figures bring all their frames
    "TQDM_DISABLE": "1",  # progress bars write to stderr, which fails a page
    "OMP_NUM_THREADS": "1",  # one core a page: the same numbers however many run side by side
}


def prepare() -> None:
    """Sets what the kernels of the pages inherit."""
    os.environ.update(ENVIRONMENT)


def folder(page: Path, root: Path = ROOT) -> Path:
    """The cache of a page for the present state of what it reaches, and of the environment."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib"):
        digest.update(f"{package} {version(package)}".encode())
    digest.update(diffbook_reach.digest(page, root).encode())
    return _caches(root) / page.stem / digest.hexdigest()[:16]


def _caches(root: Path) -> Path:
    return root / "_build" / ".jupyter_cache"


def prune(root: Path = ROOT) -> None:
    """Deletes the caches of pages that are no more, and of the others all but the newest few;
    a page's present cache counts as its newest."""
    pages = notebooks(root)
    for page in pages:
        present = folder(page, root)
        present.mkdir(parents=True, exist_ok=True)
        present.touch()
        ordered = sorted(
            present.parent.iterdir(), key=lambda path: path.stat().st_mtime
        )
        for old in ordered[:-KEEP]:
            shutil.rmtree(old)
    for path in _caches(root).glob("*/"):
        if path.name not in {page.stem for page in pages}:
            shutil.rmtree(path)


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks that the table of contents names."""
    pages = (root / f"{name}.ipynb" for name in parse_toc_yaml(root / "_toc.yml"))
    return [page for page in pages if page.is_file()]


def pending(root: Path = ROOT) -> list[Path]:
    """The notebooks that their present caches lack."""
    return [page for page in notebooks(root) if not _is_cached(page, root)]


def _is_cached(page: Path, root: Path) -> bool:
    cache = get_cache(str(folder(page, root)))
    key = cache.create_hashed_notebook(nbformat.read(page, as_version=4))[1]
    return key in {record.hashkey for record in cache.list_cache_records()}


def execute(path: Path) -> tuple[Path, ExecutionResult]:
    """Runs one notebook in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    return path, single_nb_execution(
        notebook, str(path.parent), TIMEOUT, allow_errors=False
    )


def keep(page: Path, result: ExecutionResult, place: Path) -> None:
    """Puts an executed notebook into a cache."""
    cache = get_cache(str(place))
    cache.change_cache_limit(KEEP)
    bundle = CacheBundleIn(
        result.nb, str(page), data={"execution_seconds": result.time}
    )
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def fill(root: Path = ROOT) -> int:
    """Runs the notebooks that their caches lack, in parallel; returns how many failed."""
    prepare()
    prune(root)
    waiting = {page: folder(page, root) for page in pending(root)}
    if not waiting:
        print("every notebook is in the cache")
        return 0
    workers = min(len(waiting), os.cpu_count() or 1)
    names = ", ".join(page.stem for page in waiting)
    print(f"running {names} ({workers} at a time)", flush=True)
    import matplotlib.font_manager  # noqa: F401  (its first import prints; not into a cell)

    failed, start = 0, time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for page, result in pool.map(execute, waiting):
            if result.err is None:
                keep(page, result, waiting[page])
                print(f"{page.stem}: {result.time:.0f} s", flush=True)
            else:
                failed += 1
                print(
                    f"{page.stem} failed\n{result.err}", file=sys.stderr, flush=True
                )
    print(f"notebooks run in {time.perf_counter() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(min(fill(), 1))
