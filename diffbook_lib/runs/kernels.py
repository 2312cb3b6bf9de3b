"""Papermill on a notebook: this Python's own kernel, reached through files that nobody else can
open, and an executed notebook that is whole at every moment."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from papermill.iorw import papermill_io

from diffbook_lib import files
from diffbook_lib.runs.launch import RunFailed


class OwnKernels(KernelSpecManager):
    """Knows this Python's kernel alone, whatever a user has registered under its name."""

    def find_kernel_specs(self) -> dict[str, str]:
        self.kernel_dirs = []
        found: dict[str, str] = super().find_kernel_specs()
        return found

    def _find_spec_directory(self, kernel_name: str) -> str | None:
        return self.find_kernel_specs().get(kernel_name)


class PrivateKernel(AsyncKernelManager):
    """A kernel that talks through sockets in the folder `place`, not over TCP; what it says
    outside of cells goes to the file `log` there."""

    place: Path  # short: the path of a socket has at most 107 characters

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, transport="ipc", ip=str(self.place / "socket"))
        self.kernel_spec_manager = OwnKernels(parent=self)

    async def start_kernel(self, **named: Any) -> None:  # type: ignore[override]
        """Start it, as the base class does."""
        with (self.place / "log").open("ab") as log:
            await super().start_kernel(**named, stderr=log)


class WholeFile:
    """Papermill's way to a file that is replaced as a whole or not at all."""

    def read(self, path: str) -> str:
        return Path(path).read_text(encoding="utf-8")

    def write(self, text: str, path: str) -> None:
        """Raises WriteFailed if the disk refuses."""
        files.atomic_write(Path(path), text.encode())

    def pretty_path(self, path: str) -> str:
        return path


def execute(
    notebook: Path, executed: Path, parameters: Mapping[str, Any], folder: Path
) -> None:
    """Execute a notebook with parameters in `folder`, its output shown as it comes, and keep
    it as `executed`, up to date after each cell.

    Raises RunFailed, which names the cell that fails or the kernel that dies, and WriteFailed
    if the disk refuses.
    """
    papermill_io.register(str(executed), WholeFile())
    with tempfile.TemporaryDirectory(prefix="diffbook-") as place:
        kernel = type("Kernel", (PrivateKernel,), {"place": Path(place)})
        try:
            papermill.execute_notebook(
                _plain(notebook),
                _plain(executed),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                kernel_manager_class=kernel,
                cwd=folder,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
        except papermill.PapermillExecutionError as error:
            raise RunFailed(
                f"cell {error.exec_count} of {notebook.name} failed with {error.ename}: "
                f"{error.evalue}\nexecuted up to there: {executed.with_name('notebook.ipynb')}"
            ) from None
        except DeadKernelError:
            raise RunFailed(
                f"the kernel of {notebook.name} died, perhaps for want of memory; the same "
                f"command continues from the last checkpoint{_last(Path(place) / 'log')}"
            ) from None


def _plain(path: Path) -> str:
    """A path whose braces papermill leaves alone."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _last(log: Path) -> str:
    """The end of what a kernel said outside of cells, for an error message."""
    said = log.read_text(errors="replace").strip() if log.exists() else ""
    return f"\nIts last words:\n{said[-2000:]}" if said else ""
