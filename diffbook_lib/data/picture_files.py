"""Picture files of an archive or folder: decoded, cut, and sorted into parts and classes."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffbook_lib.bars import progress_bar
from diffbook_lib.data.archives import ArchiveError, members

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
MEMORY_LIMIT = 16 * 2**30


def decode(data: bytes, origin: str, size: int = 0) -> npt.NDArray[np.uint8]:
    """A picture file as uint8 (3, height, width), grey ones as colour.

    size: cut out the largest central square and resize it to size x size (Lanczos); 0: as it
        is.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ArchiveError(f"{origin} is not a readable picture: {error}") from error
    if size and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def collect(
    path: Path, label: Callable[[str], int | None], size: int = 0
) -> dict[str, Tensor]:
    """All pictures of an archive or folder whose `label(name)` is not None, as `examples`,
    and those labels as `labels`.

    Ordered by name. Raises ArchiveError where there are none, where they have several shapes
    and no `size` was given, or where they would fill more than 16 GiB.
    """
    rows: dict[str, npt.NDArray[np.uint8]] = {}
    files = members(path, lambda name: label(name) is not None)
    bar = progress_bar()
    for name, data in bar(
        files, desc=f"decoding {path.name}", unit=" images", delay=2, mininterval=1
    ):
        rows[name] = decode(data, f"{path}: {name}", size)
        if len(rows) * rows[name].nbytes > MEMORY_LIMIT:
            raise ArchiveError(
                f"{path}: more than 16 GiB of pictures; give a smaller size"
            )
    if not rows:
        raise ArchiveError(f"{path} holds none of the pictures looked for")
    if len(shapes := {row.shape[1:] for row in rows.values()}) > 1:
        raise ArchiveError(
            f"{path}: pictures of {len(shapes)} shapes, such as {sorted(shapes)[:3]}; give a size"
        )
    chosen = sorted(rows)
    return {
        "examples": torch.from_numpy(np.stack([rows[name] for name in chosen])),
        "labels": torch.tensor([label(name) for name in chosen], dtype=torch.int64),
    }


class Arrangement(NamedTuple):
    """The pictures of a collection by part, each with the number of its class."""

    parts: dict[str, dict[str, int]]  # part -> {file's name: class}
    classes: tuple[
        str, ...
    ]  # () where not every picture lies in one of several folders


def is_picture(name: str) -> bool:
    """Whether a file of an archive or folder is a picture, by its name; hidden files, and the
    copies of names that macOS puts into archives, are none."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def arrange(names: Iterable[str], parts: tuple[str, ...] = ()) -> Arrangement:
    """Sort the pictures among `names` by the folders they lie in.

    A folder that holds everything is passed over. parts: outer folders that are parts of the
    data, such as "train" and "test"; what lies elsewhere is left out. Without them all is
    part "". Below that the outermost folder is a picture's class; classes are numbered in
    the order of their names, alike in all parts.
    """
    inner = {name: PurePosixPath(name).parts for name in names if is_picture(name)}
    while len(tops := {path[0] for path in inner.values()}) == 1 and not tops & set(
        parts
    ):
        if any(len(path) == 1 for path in inner.values()):
            break
        inner = {name: path[1:] for name, path in inner.items()}
    placed = {
        name: (path[0], path[1:]) if parts else ("", path)
        for name, path in inner.items()
        if not parts or path[0] in parts
    }
    folder = {name: rest[0] if rest[1:] else "" for name, (_, rest) in placed.items()}
    known = sorted(set(folder.values()))
    number = {name: i for i, name in enumerate(known)}
    found: dict[str, dict[str, int]] = {}
    for name, (part, _) in placed.items():
        found.setdefault(part, {})[name] = number[folder[name]]
    return Arrangement(found, tuple(known) if known[1:] and "" not in known else ())
