"""Executes the book's notebooks into a cache that notices a changed library.

jupyter-cache's own key is the code of the cells and nothing they import. So the cache lies in a
folder named by a hash of what notebooks can reach: change the library and every page runs again,
take the change back and the old results are found. Run as a script, this fills the cache with
one worker a core; the book's build then finds every notebook there.
"""

import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
KEEP = 3  # cache folders, the newest
TIMEOUT = 600  # seconds a cell, as in _config.yml
ENVIRONMENT = {
    "DIFFBOOK_PAGE": "1",  # moving figures bring all their frames
    "TQDM_DISABLE": "1",  # progress bars write to stderr, which fails a page
    "OMP_NUM_THREADS": "1",  # one core a page: the same numbers however many run side by side
}
NOT_REACHED = {"jobs.py", "__main__.py"}


def prepare() -> None:
    """Sets what the kernels of the pages inherit."""
    os.environ.update(ENVIRONMENT)


def folder(root: Path = ROOT) -> Path:
    """The cache folder for the present library, presets, results and versions."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib"):
        digest.update(f"{package} {version(package)}".encode())
    for pattern in (
        "diffbook_lib/**/*.py",
        "nbs/presets/**/*.yaml",
        "results/**/*.json",
    ):
        for path in sorted(root.glob(pattern)):
            if path.name not in NOT_REACHED:
                digest.update(
                    f"\n{path.relative_to(root)}\n".encode() + path.read_bytes()
                )
    return root / "_build" / ".jupyter_cache" / digest.hexdigest()[:16]


def prune(current: Path) -> None:
    """Deletes all cache folders but the newest few; the current one counts as the newest."""
    current.mkdir(parents=True, exist_ok=True)
    current.touch()
    folders = sorted(current.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in folders[:-KEEP]:
        shutil.rmtree(old)


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks that the table of contents names."""
    pages = (root / f"{name}.ipynb" for name in parse_toc_yaml(root / "_toc.yml"))
    return [page for page in pages if page.is_file()]


def pending(root: Path = ROOT) -> list[Path]:
    """The notebooks that the present cache lacks."""
    cache = get_cache(str(folder(root)))
    known = {record.hashkey for record in cache.list_cache_records()}

    def key(path: Path) -> str:
        return cache.create_hashed_notebook(nbformat.read(path, as_version=4))[1]

    return [path for path in notebooks(root) if key(path) not in known]


def execute(path: Path) -> tuple[Path, ExecutionResult]:
    """Runs one notebook in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    return path, single_nb_execution(
        notebook, str(path.parent), TIMEOUT, allow_errors=False
    )


def fill(root: Path = ROOT) -> int:
    """Runs the notebooks that the cache lacks, in parallel; returns how many failed."""
    prepare()
    prune(folder(root))
    waiting = pending(root)
    if not waiting:
        print("every notebook is in the cache")
        return 0
    workers = min(len(waiting), os.cpu_count() or 1)
    print(
        f"running {', '.join(path.stem for path in waiting)} ({workers} at a time)",
        flush=True,
    )
    import matplotlib.font_manager  # noqa: F401  (its first import prints; not into a cell)

    cache = get_cache(str(folder(root)))
    failed, start = 0, time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for path, result in pool.map(execute, waiting):
            if result.err is None:
                data = {"execution_seconds": result.time}
                bundle = CacheBundleIn(result.nb, str(path), data=data)
                cache.cache_notebook_bundle(
                    bundle, check_validity=False, overwrite=True
                )
                print(f"{path.stem}: {result.time:.0f} s", flush=True)
            else:
                failed += 1
                print(
                    f"{path.stem} failed\n{result.err}",
                    file=sys.stderr,
                    flush=True,
                )
    print(f"notebooks run in {time.perf_counter() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(min(fill(), 1))
