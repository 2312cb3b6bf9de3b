"""Spoken digits: SC09 (the digit words of Speech Commands) and the Free Spoken Digit Dataset.

Examples are 16-bit samples (length,), padded with silence or cut at the end.
"""

import io
import math
import re
import struct
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch

from diffbook_lib.data.archives import ArchiveError, Published, Store
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.picture_files import decoded
from diffbook_lib.data.unpacking import members

Samples = npt.NDArray[np.int16]

SPEECH_COMMANDS = Published(
    "speech_commands_v0.02.tar.gz",
    "md5:6b74f3901214cb2c2934e98196829835",
    (
        "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    ),
)
FSDD = Published(
    "free-spoken-digit-dataset-1.0.10.tar.gz",
    "md5:fe9a5b092c3126a1656e33520c54b137",
    steps="Pack the folder recordings/ of release v1.0.10 of "
    "https://github.com/Jakobovski/free-spoken-digit-dataset under "
    "free-spoken-digit-dataset-1.0.10/ into it (another packing has another checksum and loads "
    "with allow_partial=True)",
)
WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


def sc09(store: Store, split: str) -> ArrayDataset:
    """SC09: the ten digit words of Speech Commands v0.02 (Warden 2018), one second at 16 kHz.

    The archive's own lists say which clips validate and test: 31,158 / 3,643 / 4,107.
    """
    found = store.get("sc09", SPEECH_COMMANDS)
    key = f"sc09-{split}-{found.digest[:16]}"
    tensors = decoded(key, lambda: _sc09(found.path, split))
    official = {"train": 31_158, "valid": 3_643, "test": 4_107}[split]
    return _dataset(
        "sc09",
        f"SC09, spoken digits at 16 kHz, {split}: {len(tensors['labels']):,} of {official:,} clips",
        tensors,
    )


def _sc09(path: Path, split: str) -> dict[str, torch.Tensor]:
    clips, lists = {}, {}
    for name, data in members(
        path, lambda name: bool(_word(name)) or name in _LISTS.values()
    ):
        if name in _LISTS.values():
            lists[name] = set(data.decode(errors="replace").split())
        else:
            clips[name] = fit(read_wav(data, 16_000, f"{path}: {name}"), 16_000)
    if missing := set(_LISTS.values()) - set(lists):
        raise ArchiveError(f"{path} lacks {', '.join(sorted(missing))}")
    held_out = set().union(*lists.values())
    mine = lists[_LISTS[split]] if split in _LISTS else set(clips) - held_out
    return _stack(
        (WORDS.index(_word(n)), clips[n]) for n in sorted(clips) if n in mine
    )


def _word(name: str) -> str:
    """The digit word whose clip a member is, or nothing."""
    word = PurePosixPath(name).parent.name
    return word if word in WORDS and name.endswith(".wav") else ""


def fsdd(
    store: Store, split: str, *, rate: int = 8_000, length: int | None = None
) -> ArrayDataset:
    """Free Spoken Digit Dataset v1.0.10: 3,000 recordings of six speakers, 8 kHz.

    The first five of each fifty test, as upstream has it. rate: resample to this many samples a
    second; length: samples of an example, one second unless told.
    """
    path = store.get("fsdd", FSDD).path

    def clips() -> Iterator[tuple[int, Samples]]:
        for name, data in members(path, lambda name: _recording(name) is not None):
            digit, index = _recording(name) or (0, 0)
            if (index < 5) == (split == "test"):
                samples = resample(
                    read_wav(data, 8_000, f"{path}: {name}"), 8_000, rate
                )
                yield digit, fit(samples, length or rate)

    tensors = _stack(clips())
    official = {"train": 2_700, "test": 300}[split]
    count = len(tensors["labels"])
    return _dataset(
        "fsdd",
        f"Free Spoken Digit Dataset at {rate:,} Hz, {split}: {count:,} of {official:,} clips",
        tensors,
    )


def _recording(name: str) -> tuple[int, int] | None:
    """(digit, index) of the name `{digit}_{speaker}_{index}.wav`."""
    match = re.fullmatch(r"(\d)_\w+_(\d+)\.wav", PurePosixPath(name).name)
    return (int(match[1]), int(match[2])) if match else None


def _dataset(
    name: str, description: str, tensors: dict[str, torch.Tensor]
) -> ArrayDataset:
    return ArrayDataset(
        tensors["examples"],
        tensors["labels"],
        levels=2**16,
        classes=WORDS,
        name=name,
        description=description,
        kind="sound",
    )


def _stack(clips: Iterable[tuple[int, Samples]]) -> dict[str, torch.Tensor]:
    pairs = list(clips)
    samples = (
        np.stack([clip for _, clip in pairs]) if pairs else np.empty((0, 1), np.int16)
    )
    labels = torch.tensor([label for label, _ in pairs], dtype=torch.int64)
    return {"examples": torch.from_numpy(samples), "labels": labels}


def read_wav(data: bytes, rate: int, origin: str) -> Samples:
    """Samples int16 (n,) of a mono 16-bit wav file. Raises ArchiveError for any other."""
    try:
        with wave.open(io.BytesIO(data)) as sound:
            form = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            count = sound.getnframes()
            samples = np.frombuffer(sound.readframes(count), "<i2")
    except (EOFError, wave.Error, ValueError, struct.error, RuntimeError) as error:
        raise ArchiveError(f"{origin} is not a wav file: {error}") from error
    if form != (1, 2, rate):
        raise ArchiveError(
            f"{origin}: (channels, bytes, rate) is {form}, not (1, 2, {rate})"
        )
    if len(samples) != count:
        raise ArchiveError(
            f"{origin} is cut off: it holds {len(samples):,} of {count:,} samples"
        )
    return samples


def resample(samples: Samples, old: int, new: int) -> Samples:
    """16-bit samples at rate `new` that were at rate `old`."""
    from scipy.signal import resample_poly

    if old == new:
        return samples
    common = math.gcd(old, new)
    values = resample_poly(samples.astype(np.float64), new // common, old // common)
    rounded: Samples = np.clip(np.round(values), -(2**15), 2**15 - 1).astype(np.int16)
    return rounded


def fit(samples: Samples, length: int) -> Samples:
    """Exactly `length` samples: silence added or the rest cut off at the end."""
    fitted = np.zeros(length, np.int16)
    fitted[: len(samples)] = samples[:length]
    return fitted
