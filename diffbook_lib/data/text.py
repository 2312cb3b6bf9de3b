"""Text of 27 symbols: text8 and the standard library's own help topics.

Symbol 0 is the space, 1 to 26 are a to z. Examples are consecutive chunks of one length.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffbook_lib.data.archives import ArchiveError, DataError, Published, Store
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.unpacking import members

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
SPLITS = ("train", "valid", "test")

# The digest is that of the zip; the widely quoted MD5 3bea1919... is that of the file inside.
TEXT8 = Published(
    "text8.zip",
    "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ("https://mattmahoney.net/dc/text8.zip", "http://mattmahoney.net/dc/text8.zip"),
)


def encode(text: str) -> Tensor:
    """Symbols of a text, uint8 (n,). Raises ValueError for anything but a-z and space."""
    codes = np.frombuffer(text.encode("utf-8"), np.uint8)
    symbols = np.where(codes == ord(" "), 0, codes.astype(np.int16) - ord("a") + 1)
    wrong = (symbols < 0) | (symbols > 26) | ((symbols == 0) & (codes != ord(" ")))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"byte {codes[at]:#x} at position {at} is neither a-z nor a space"
        )
    return torch.from_numpy(symbols.astype(np.uint8))


def decode(symbols: Tensor) -> str:
    """The text of symbols 0 ... 26, an integer tensor (n,)."""
    return "".join(ALPHABET[i] for i in symbols.tolist())


def clean(text: str) -> str:
    """Lower case, with every run of other characters than a-z made one space."""
    return re.sub("[^a-z]+", " ", text.lower()).strip()


def text8(
    store: Store,
    split: str,
    *,
    length: int = 250,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
) -> ArrayDataset:
    """text8 (Mahoney): 100,000,000 characters of Wikipedia in chunks of `length`.

    splits: sizes of train, valid and test, in characters or as fractions of the file; the
    default is the usual 90M/5M/5M. Batches are int64 (batch, length).
    """
    path = store.get("text8", TEXT8).path
    content = dict(members(path, lambda name: name == "text8"))
    if "text8" not in content:
        raise ArchiveError(f"{path} lacks the file text8")
    try:
        symbols = encode(content["text8"].decode("ascii"))
    except ValueError as error:
        raise ArchiveError(f"{path} is not text of 27 symbols: {error}") from error
    title = f"text8 ({len(symbols):,} of 100,000,000 characters)"
    return _chunks("text8", title, symbols, split, length, splits)


def pydoc(
    store: Store,
    split: str,
    *,
    length: int = 64,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
) -> ArrayDataset:
    """The help topics of the running Python, cleaned, in chunks of `length`.

    They change a little from one version of Python to the next, so the description names it.
    Batches are int64 (batch, length).
    """
    import platform
    from pydoc_data.topics import topics

    symbols = encode(clean(" ".join(topics[key] for key in sorted(topics))))
    title = f"help topics of Python {platform.python_version()} ({len(symbols):,} characters)"
    return _chunks("pydoc", title, symbols, split, length, splits)


def _chunks(
    name: str,
    title: str,
    symbols: Tensor,
    split: str,
    length: int,
    splits: Sequence[float],
) -> ArrayDataset:
    sizes = _sizes(len(symbols), splits)
    start = sum(sizes[: SPLITS.index(split)])
    size = sizes[SPLITS.index(split)]
    if not 0 < length <= size:
        raise DataError(
            f"length is {length}; the {split} part of {name} has {size} characters"
        )
    count = size // length
    return ArrayDataset(
        symbols[start : start + count * length].view(count, length),
        levels=len(ALPHABET),
        name=name,
        description=f"{title}, {split}: {count:,} chunks of {length} from character {start:,} on",
        kind="text",
        discrete=True,
    )


def _sizes(total: int, splits: Sequence[float]) -> list[int]:
    """The parts in characters. Raises DataError where they do not fit into the text."""
    if len(splits) != 3 or min(splits) < 0:
        raise DataError(
            f"splits is {splits}; give the sizes of train, valid and test"
        )
    sizes = [
        round(part * total) if isinstance(part, float) else part for part in splits
    ]
    if sum(sizes) > total:
        raise DataError(
            f"splits {tuple(splits)} need {sum(sizes):,} characters, the text has {total:,}; "
            "give smaller sizes, or fractions such as (0.9, 0.05, 0.05)"
        )
    return sizes
