"""Archives and folders of files, read without trusting them.

Archives are never unpacked to disk: their members are read into memory one by one, so that
nothing half-unpacked can be left behind, and no more of one than `MOST`, no more of all than
`RATIO` times what the archive takes.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, cast

from diffbook_lib.data.archives import ArchiveError, DataError

MOST = 2**28  # bytes of a member; the largest of a published data set takes 154 MB
RATIO = 200  # pictures and texts take at most some tens of their compressed size
OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
}
BROKEN = (
    *(EOFError, OSError, ValueError, LookupError, RuntimeError, OverflowError),
    *(struct.error, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the wanted files of a tar or zip archive or a folder.

    Raises ArchiveError for a damaged archive, for one that would fill the memory, and for one
    with a member that is a link, device or sparse file or whose name leads outside, wanted or
    not.
    """
    archive = _zip if path.suffix.lower() == ".zip" else _tar
    read = _folder if path.is_dir() else archive
    try:
        yield from read(path, wanted)
    except DataError:
        raise
    except BROKEN as error:
        raise damaged(path, error) from error


def names(path: Path) -> list[str]:
    """The names of all files of an archive or folder, sorted."""
    seen: list[str] = []

    def note(name: str) -> bool:
        seen.append(name)
        return False

    for _ in members(path, note):
        pass
    return sorted(seen)


def gunzip(path: Path) -> bytes:
    """The content of a gzip file. Raises ArchiveError where it is damaged, cut off or larger
    than `MOST`."""
    try:
        with gzip.open(path) as stream:
            content = stream.read(MOST + 1)
    except BROKEN as error:
        raise damaged(path, error) from error
    _check_size(path, "its content", len(content))
    if not content:
        raise damaged(path, EOFError("it is empty"))
    return content


def damaged(path: Path, error: Exception) -> ArchiveError:
    """What to say of a file that cannot be read."""
    if isinstance(error, PermissionError):
        return ArchiveError(
            f"{path} cannot be read: {error.strerror}. Give this user the right to read it"
        )
    if "encrypted" in str(error):
        return ArchiveError(
            f"{path} is encrypted; give an archive without a password"
        )
    if isinstance(error, NotImplementedError):
        return ArchiveError(
            f"{path} is packed in a way that Python cannot read ({error}); pack it anew, by "
            "deflate or as a tar archive"
        )
    return ArchiveError(
        f"{path} is damaged or cut off ({error}). Delete it and obtain it anew"
    )


def _check_size(path: Path, what: str, size: int) -> None:
    if size > MOST:
        raise ArchiveError(
            f"{path} is unsafe: {what} takes {size / 1e6:,.0f} MB or more, and at most "
            f"{MOST / 1e6:,.0f} MB are read of one file"
        )


def _check_total(path: Path, total: int) -> None:
    most = MOST + RATIO * path.stat().st_size
    if total > most:
        raise ArchiveError(
            f"{path} is unsafe: it unpacks to {total / 1e6:,.0f} MB or more, over {RATIO} times "
            "its own size"
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


class _Capped(io.RawIOBase):
    """The unpacked content of a tar archive, of which no more is read than is allowed."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            opener = OPENERS.get(stream.read(2), open)
        self.path = path
        self.inner = cast(BinaryIO, opener(path, "rb"))

    def read(self, size: int = -1) -> bytes:
        _check_size(self.path, "a part of it", MOST + 1 if size < 0 else size)
        _check_total(self.path, self.inner.tell() + size)
        return self.inner.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        _check_total(self.path, offset)
        return self.inner.seek(offset, whence)

    def tell(self) -> int:
        return self.inner.tell()

    def close(self) -> None:
        self.inner.close()
        super().close()


def _tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with _Capped(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = _check_member(path, member.name, member.isfile() or member.isdir())
            if member.issparse():
                raise ArchiveError(f"{path} is unsafe: its member {name!r} is sparse")
            if member.isfile() and wanted(name):
                _check_size(path, f"its member {name!r}", member.size)
                content = cast(BinaryIO, archive.extractfile(member)).read()
                if len(content) < member.size:
                    raise EOFError(
                        f"{name} has {len(content)} of {member.size} bytes"
                    )
                yield name, content
        while stream.read(2**20):
            pass  # to the end: only there does gzip compare its own checksum


def _zip(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        names = [
            _check_member(path, i.filename, not stat.S_ISLNK(i.external_attr >> 16))
            for i in infos
        ]
        _check_total(path, sum(info.file_size for info in infos))
        for info, name in zip(infos, names, strict=True):
            if not info.is_dir() and wanted(name):
                _check_size(path, f"its member {name!r}", info.file_size)
                yield name, archive.read(info)


def _folder(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and wanted(name):
            yield name, file.read_bytes()
