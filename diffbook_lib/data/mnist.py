"""MNIST and Fashion-MNIST: four gzipped IDX files each."""

import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffbook_lib.data.archives import ArchiveError, Published, Store
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.unpacking import gunzip


class Idx(NamedTuple):
    """A data set in MNIST's form: names of its parts, addresses and MD5 sums of its files."""

    name: str
    title: str
    classes: tuple[str, ...]
    addresses: tuple[str, ...]
    md5: dict[str, str]


MNIST = Idx(
    "mnist",
    "MNIST",
    tuple("0123456789"),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    {
        "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION_MNIST = Idx(
    "fashion-mnist",
    "Fashion-MNIST",
    (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    {
        "train-images-idx3": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)


def mnist(store: Store, split: str) -> ArrayDataset:
    """Handwritten digits (LeCun, Cortes, Burges): 28x28 grey, 60,000 and 10,000 images."""
    return _load(MNIST, store, split)


def fashion_mnist(store: Store, split: str) -> ArrayDataset:
    """Pictures of clothes (Zalando Research): 28x28 grey, 60,000 and 10,000 images."""
    return _load(FASHION_MNIST, store, split)


def _load(source: Idx, store: Store, split: str) -> ArrayDataset:
    part, official = {"train": ("train", 60_000), "test": ("t10k", 10_000)}[split]
    images = _read(source, store, f"{part}-images-idx3", dimensions=3)
    labels = _read(source, store, f"{part}-labels-idx1", dimensions=1)
    if len(images) != len(labels) or labels.max(initial=0) >= len(source.classes):
        raise ArchiveError(
            f"{source.name} {split}: {len(labels)} labels, the highest "
            f"{labels.max(initial=0)}, for {len(images)} images of {len(source.classes)} "
            "classes"
        )
    return ArrayDataset(
        torch.from_numpy(images).unsqueeze(1),
        _int64(labels),
        classes=source.classes,
        name=source.name,
        description=f"{source.title}, {split}: {len(images):,} of {official:,} images",
    )


def _read(source: Idx, store: Store, stem: str, dimensions: int) -> np.ndarray:
    """One IDX file: the magic number 0x0800 + dimensions, big-endian sizes, bytes."""
    name = f"{stem}-ubyte.gz"
    urls = tuple(address + name for address in source.addresses)
    path = store.get(
        source.name, Published(name, f"md5:{source.md5[stem]}", urls)
    ).path
    content = gunzip(path)
    header = 4 + 4 * dimensions
    magic, *sizes = struct.unpack_from(
        f">{1 + dimensions}I", content.ljust(header, b"\0")
    )
    if magic != 0x0800 + dimensions or len(content) != header + np.prod(
        sizes, dtype=object
    ):
        raise ArchiveError(
            f"{path} is not an IDX file of {dimensions} dimensions: magic number {magic:#x}, "
            f"sizes {sizes}, {len(content)} bytes"
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(sizes)


def _int64(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
