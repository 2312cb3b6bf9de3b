"""Files of data sets: found or downloaded, checked, and read without trusting them.

Archives are never unpacked to disk: their members are read into memory one by one, so that
nothing half-unpacked can be left behind.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
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
        found = pooch.file_hash(str(path), algorithm)
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
                return Path(
                    pooch.retrieve(
                        url, file.checksum, file.name, target, progressbar=True
                    )
                )
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


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, may be written to."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the wanted files of a tar or zip archive or a folder.

    Raises ArchiveError for a damaged archive and for one with a member that is a link or device
    or whose name leads outside, wanted or not.
    """
    read = _folder if path.is_dir() else _zip if path.suffix == ".zip" else _tar
    try:
        yield from read(path, wanted)
    except (
        EOFError,
        OSError,
        zlib.error,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise _damaged(path, error) from error


def names(path: Path) -> list[str]:
    """The names of all files of an archive or folder, sorted."""
    seen: list[str] = []

    def note(name: str) -> bool:
        seen.append(name)
        return False

    for _ in members(path, note):
        pass
    return sorted(seen)


def stamp(path: Path) -> str:
    """16 hexadecimal digits that change when a file, or any file of a folder, is replaced: made
    of names, sizes and times, for what is too large to be read whole at each start."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def gunzip(path: Path) -> bytes:
    """The content of a gzip file. Raises ArchiveError where it is damaged or cut off."""
    try:
        if content := gzip.decompress(path.read_bytes()):
            return content
        raise EOFError("it is empty")
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArchiveError:
    return ArchiveError(
        f"{path} is damaged or cut off ({error}). Delete it and obtain it anew"
    )


def _check_member(path: Path, name: str, plain: bool) -> str:
    """The member's name without a leading `./`, if it is a plain file inside the archive."""
    parts = PureWindowsPath(name)
    if parts.drive or parts.root or ".." in parts.parts:
        raise ArchiveError(
            f"{path} is unsafe: its member {name!r} leads outside; nothing was read"
        )
    if not plain:
        raise ArchiveError(
            f"{path} is unsafe: its member {name!r} is a link or a device"
        )
    return str(PurePosixPath(name))


def _tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            name = _check_member(path, member.name, member.isfile() or member.isdir())
            content = (
                archive.extractfile(member)
                if member.isfile() and wanted(name)
                else None
            )
            if content is not None:
                yield name, content.read()
        while archive.fileobj and archive.fileobj.read(2**20):
            pass  # to the end: only there does gzip compare its own checksum


def _zip(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        names = [
            _check_member(path, i.filename, not stat.S_ISLNK(i.external_attr >> 16))
            for i in infos
        ]
        for info, name in zip(infos, names, strict=True):
            if not info.is_dir() and wanted(name):
                yield name, archive.read(info)


def _folder(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and wanted(name):
            yield name, file.read_bytes()
