"""Somebody's own data: a folder, zip or tar archive of pictures, or an array file.

Held out is what lies in the outer folder test/, else val/, where there is a train/ beside
it; otherwise a tenth of the examples (at least one), chosen at random once and for all.
"""

import hashlib
from pathlib import Path

from diffbook_lib import rng
from diffbook_lib.data import arrays
from diffbook_lib.data.archives import (
    ArchiveError,
    ChecksumError,
    DataError,
    MissingDataError,
    Store,
)
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.description import Description
from diffbook_lib.data.picture_files import (
    Arrangement,
    arrange,
    collect,
    decode,
    decoded,
    is_picture,
)
from diffbook_lib.data.unpacking import members, names

NAME = "folder"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def folder(
    store: Store,
    split: str,
    *,
    path: str = "",
    size: int = 0,
    levels: int = 0,
    data_hash: str = "",
) -> ArrayDataset:
    """One's own pictures or array (`arrays`), held in memory.

    Pictures become colour images; size: cut out their central square and resize it to
    size x size. Where every picture lies in one of several folders, these are its classes.
    levels: of an array of integers, 256 for bytes unless told. data_hash: the `content_hash`
    that the data must have. Raises ChecksumError where they have another, MissingDataError
    or ArchiveError where there are no such data.
    """
    place = _place(path, size, levels)
    digest = content_hash(path)
    if data_hash and digest != data_hash:
        raise ChecksumError(
            f"{place} has changed: its content has the hash {digest[:8]}..., but the run was "
            f"started with {data_hash[:8]}...; put those data back, or start a new run"
        )
    if _is_array(place):
        examples, labels = arrays.read(place, levels)
        about = arrays.form(place, levels)
        everything = ArrayDataset(
            examples,
            labels,
            levels=about.levels,
            classes=tuple(map(str, range(about.class_count))),
            name=NAME,
            description=place.name,
            kind=about.kind,
            discrete=about.kind == "text",
        )
        return _tenth(everything, split)
    arrangement, held_out = _arranged(place)
    part = ("train" if split == "train" else held_out) if held_out else ""
    numbers = arrangement.parts[part]
    key = f"own-{digest[:32]}-{part or 'all'}-{size or 'as-is'}"
    tensors = decoded(key, lambda: collect(place, numbers.get, size))
    everything = ArrayDataset(
        tensors["examples"],
        tensors["labels"] if arrangement.classes else None,
        classes=arrangement.classes,
        name=NAME,
        description=f"{place.name}, {part}: {len(numbers):,} images"
        if part
        else place.name,
    )
    return everything if part else _tenth(everything, split)


def describe(
    *, path: str = "", size: int = 0, levels: int = 0, data_hash: str = ""
) -> Description:
    """What `folder` would give: from an array file's header, or the names in a folder or
    archive and, without a size, its first picture. The hash is not looked at."""
    place = _place(path, size, levels)
    splits = ("train", "test")
    if _is_array(place):
        kind, shape, count, classes = arrays.form(place, levels)
        numbered = tuple(map(str, range(classes)))
        return Description(NAME, kind, shape, count, numbered, classes, splits)
    arrangement, _ = _arranged(place)
    side = (3, size, size) if size else _first_shape(place, arrangement)
    classes = len(arrangement.classes)
    return Description(
        NAME, "images", side, 256, arrangement.classes, classes, splits
    )


def content_hash(path: str) -> str:
    """SHA-256 of one's own data, in hexadecimal digits: of an array file's bytes, or of the
    names and bytes of all pictures of a folder or archive, however it is packed."""
    place = _place(path)
    if _is_array(place):
        with place.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = sorted(
        f"{name}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in members(place, is_picture)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _place(path: str, size: int = 0, levels: int = 0) -> Path:
    """The file or folder, if it exists, is of a kind that can be read, and takes these."""
    if not path:
        raise DataError(
            "dataset = 'folder' needs path, a folder, zip or tar archive of pictures or an "
            f"array file ({', '.join(arrays.SUFFIXES)})"
        )
    place = Path(path).expanduser()
    if not place.exists():
        raise MissingDataError(
            f"path is {path}, but {place.absolute()} does not exist"
        )
    allowed = (*ARCHIVES, *arrays.SUFFIXES)
    if place.is_file() and not place.name.lower().endswith(allowed):
        raise DataError(
            f"path is {path}; it must be a folder of pictures or a file that ends in "
            f"{', '.join(allowed)}"
        )
    if size and _is_array(place):
        raise DataError(
            f"size is {size}, but {place.name} holds an array, which is taken as it is; leave "
            "size out"
        )
    if levels and not _is_array(place):
        raise DataError(
            f"levels is {levels}, but pictures have 256 levels; leave it out (it is for arrays)"
        )
    return place


def _is_array(place: Path) -> bool:
    return place.is_file() and place.suffix.lower() in arrays.SUFFIXES


def _arranged(place: Path) -> tuple[Arrangement, str]:
    """The pictures, and the name of the held-out part ("" where none is set apart)."""
    listed = names(place)
    for held_out in ("test", "val"):
        arrangement = arrange(listed, ("train", held_out))
        if set(arrangement.parts) == {"train", held_out}:
            return arrangement, held_out
    arrangement = arrange(listed)
    if not arrangement.parts:
        raise ArchiveError(f"{place} holds no pictures")
    return arrangement, ""


def _first_shape(place: Path, arrangement: Arrangement) -> tuple[int, ...]:
    first = min(name for part in arrangement.parts.values() for name in part)
    content = next(data for _, data in members(place, lambda name: name == first))
    return decode(content, f"{place}: {first}").shape


def _tenth(everything: ArrayDataset, split: str) -> ArrayDataset:
    """The training or held-out part of examples of which none are set apart."""
    total = everything.size
    if total < 2:
        raise ArchiveError(
            f"{everything.description} holds one example; give at least two"
        )
    order = rng.permutation(total, 0, "held out")
    held_out = max(1, total // 10)
    rows = (order[held_out:] if split == "train" else order[:held_out]).sort().values
    which = f"all but a random tenth, {len(rows):,}"
    if split == "test":
        which = f"a random tenth, {len(rows):,}"
    return everything.subset(rows, which)
