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
    """A kernel that talks through sockets in a folder of this user's, not over TCP."""

    def __init__(self, **named: Any) -> None:
        # under the shortest path there is: that of a socket has at most 107 characters
        self.place = tempfile.TemporaryDirectory(prefix="diffbook-")
        address = f"{self.place.name}/socket"
        super().__init__(**named, transport="ipc", ip=address)
        self.kernel_spec_manager = OwnKernels(parent=self)

    def cleanup_resources(self, restart: bool = False) -> Any:
        if not restart:
            self.place.cleanup()
        return super().cleanup_resources(restart)


class WholeFile:
    """Papermill's way to a file that is replaced as a whole or not at all."""

    def read(self, path: str) -> str:
        return Path(path).read_text(encoding="utf-8")

    def write(self, text: str, path: str) -> None:
        """Raises RunFailed, which names the file and its size, if the disk refuses."""
        data = text.encode()
        try:
            files.atomic_write(Path(path), data)
        except OSError as error:
            raise RunFailed(
                f"{path} could not be written: {error.strerror}. It needs {len(data) / 1e6:.1f} "
                "MB. Make room on that disk and start the same run again; it continues from the "
                "last checkpoint"
            ) from error

    def pretty_path(self, path: str) -> str:
        return path


def execute(
    notebook: Path, executed: Path, parameters: Mapping[str, Any], folder: Path
) -> None:
    """Execute a notebook with parameters in `folder`, its output shown as it comes, and keep
    it as `executed`, up to date after each cell.

    Raises papermill.PapermillExecutionError for a cell that fails, RunFailed if the disk
    refuses.
    """
    papermill_io.register(str(executed), WholeFile())
    papermill.execute_notebook(
        _plain(notebook),
        _plain(executed),
        parameters=dict(parameters),
        kernel_name="python3",
        language="python",
        kernel_manager_class=PrivateKernel,
        cwd=folder,
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )


def _plain(path: Path) -> str:
    """A path whose braces papermill leaves alone."""
    return str(path).replace("{", "{{").replace("}", "}}")
