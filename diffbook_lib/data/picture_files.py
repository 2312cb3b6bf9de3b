"""Picture files of an archive or folder: decoded, cut, and sorted into parts and classes."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffbook_lib.bars import progress_bar
from diffbook_lib.data.archives import ArchiveError
from diffbook_lib.data.unpacking import members
from diffbook_lib.files import cached_tensors

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # others may start programs
DECODING = 2  # counted up when `decode` gives something else
MEMORY_LIMIT = 16 * 2**30


def decode(data: bytes, origin: str, size: int = 0) -> npt.NDArray[np.uint8]:
    """A picture file as uint8 (3, height, width), grey ones as colour.

    size: cut out the largest central square and resize it to size x size (Lanczos); 0: as it
        is. 16 bits become the nearest of 8. Raises ArchiveError for what is no such picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            picture = _eight_bits(opened).convert("RGB")
    except Exception as error:  # of any kind, by what is broken in the file
        raise ArchiveError(f"{origin} is not a readable picture: {error}") from error
    if size and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits, which Pillow would cut off at 255, with 8."""
    from PIL import Image

    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 2**16 - 1:
        raise ValueError(f"it holds numbers from {values.min()} to {values.max()}")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def decoded(key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`examples` and `labels` that `build` decodes, kept in the cache under a key that names
    everything they are made of."""
    name = f"examples/{key}-{DECODING}"
    return cached_tensors(name, build, {"examples", "labels"})


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
