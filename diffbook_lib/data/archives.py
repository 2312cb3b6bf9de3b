"""Files of data sets: found or downloaded, and compared with their published checksums."""

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diffbook_lib.errors import Refused
from diffbook_lib.files import cache_folder


class DataError(Refused):
    """A data set cannot be given; the message says what to do."""


class MissingDataError(DataError):
    """A file is neither there nor obtainable."""


class ChecksumError(DataError):
    """A file is not the one its authors published."""


class ArchiveError(DataError):
    """An archive is damaged, unsafe, or does not hold what it should."""


class PartialDataWarning(UserWarning):
    """Data come from a file that is not the published one, by the user's own wish."""


class Published(NamedTuple):
    """A file as its authors publish it."""

    name: str
    checksum: str  # "algorithm:digest"
    urls: tuple[str, ...] = ()
    steps: str = ""  # how to obtain it where no address serves it


class Found(NamedTuple):
    """A file at hand and the digest of its content."""

    path: Path
    digest: str


def data_folder(folder: str | Path | None = None) -> Path:
    """`folder`, else the one DIFFBOOK_DATA names, else the user's cache."""
    return Path(
        folder or os.environ.get("DIFFBOOK_DATA") or cache_folder()
    ).expanduser()


@dataclass
class Store:
    """The folder that holds one subfolder a data set.

    Nothing is ever written into a folder without write permission (a shared, read-only one):
    downloads then go to the user's cache, where they are also looked for.
    """

    folder: Path
    allow_partial: bool = False
    unofficial: list[str] = field(default_factory=list)

    def find(self, dataset: str, *names: str) -> Path | None:
        """The first of the files or folders `names` of a data set that exists."""
        roots = (self.folder / dataset, cache_folder() / dataset)
        return next((r / n for r in roots for n in names if (r / n).exists()), None)

    def get(self, dataset: str, file: Published) -> Found:
        """A published file, downloaded if need be, after comparing its checksum.

        A file with another checksum raises ChecksumError, or is noted in `unofficial` where
        allow_partial says that it is welcome.
        """
        import pooch

        path = self.find(dataset, file.name) or self._download(dataset, file)
        algorithm, expected = file.checksum.split(":")
        try:
            found = pooch.file_hash(str(path), algorithm)
        except OSError as error:
            raise ArchiveError(
                f"{path} cannot be read: {error.strerror}. Give this user the right to read it, "
                "or put a whole file there"
            ) from error
        if found != expected:
            difference = f"{path}: {algorithm} expected {expected}, found {found}"
            if not self.allow_partial:
                raise ChecksumError(
                    f"{difference}. Delete the file and load again to download it anew, or, if "
                    "you put a part of the data set there on purpose, pass allow_partial=True"
                )
            self.unofficial.append(difference)
        return Found(path, found)

    def _download(self, dataset: str, file: Published) -> Path:
        import pooch

        target = (self.folder if _writable(self.folder) else cache_folder()) / dataset
        failures = []
        for url in file.urls:
            try:
                with _half_way(target) as place:
                    fetched = pooch.retrieve(
                        url, file.checksum, file.name, place, progressbar=True
                    )
                    return Path(fetched).replace(target / file.name)
            except Exception as error:
                failures.append(f"{url}: {error}")
        reason = "; ".join(failures)
        kind = (
            ChecksumError
            if "does not match the known hash" in reason
            else MissingDataError
        )
        steps = file.steps or f"Download it from {' or '.join(file.urls)}"
        raise kind(
            f"data set {dataset}: {file.name} ({file.checksum}) is not in "
            f"{self.folder / dataset}{' and the download failed: ' + reason if reason else ''}. "
            f"{steps} and put it there; DIFFBOOK_DATA names the folder {self.folder}"
        )


@contextmanager
def _half_way(target: Path) -> Iterator[Path]:
    """A folder in `target` for a download on its way. What killed processes of this machine
    have left is removed."""
    begins = f".download-{platform.node()}-"
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(f"{begins}*"):
        if not _lives(left.name.removeprefix(begins)):
            shutil.rmtree(left, ignore_errors=True)
    place = target / f"{begins}{os.getpid()}"
    place.mkdir(exist_ok=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _lives(process: str) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, may be written to."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def stamp(path: Path) -> str:
    """16 hexadecimal digits that change when a file, or any file of a folder, is replaced: made
    of names, sizes and times, for what is too large to be read whole at each start."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
