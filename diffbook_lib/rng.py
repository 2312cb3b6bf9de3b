"""Keyed randomness: every random number is a function of (seed, purpose, step or image index).

Nothing carries generator state from one step to the next, so a run resumed at step n draws what
an undisturbed run draws at step n, several processes draw what one draws, and image i starts from
the same noise whatever the batch size.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: str) -> int:
    """A 64-bit key for (seed, purpose)."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or a positive integer")
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _step_key(seed: int, purpose: str, step: int) -> int:
    """torch's CPU generator keeps only the low 32 bits of its seed; adding the step to the key
    keeps any two of the first 2**32 steps of a purpose apart, which hashing it in would not."""
    if step < 0:
        raise ValueError(f"step is {step}; it must be 0 or a positive integer")
    return (_key(seed, purpose) + step) % 2**63


def generator(
    seed: int, purpose: str, step: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """The generator of one step of one purpose. Raises ValueError for a negative seed or step."""
    return torch.Generator(device).manual_seed(_step_key(seed, purpose, step))


@dataclass(frozen=True)
class Share:
    """One worker's rows `start:stop` of the random numbers drawn for a global batch of `total`.

    Every worker draws the whole batch and keeps its rows, so the numbers do not depend on how
    many workers there are.
    """

    generator: torch.Generator
    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.total:
            raise ValueError(f"rows {self.start}:{self.stop} are no share of {self.total} rows")


Source = torch.Generator | Share


def normal(shape: Sequence[int], source: Source, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of `shape` (batch first) on the source's device."""
    return _draw(torch.randn, shape, source, dtype)


def uniform(shape: Sequence[int], source: Source, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1) of `shape` (batch first) on the source's device."""
    return _draw(torch.rand, shape, source, dtype)


def integers(high: int, shape: Sequence[int], source: Source) -> Tensor:
    """Uniform int64 in {0, ..., high - 1} of `shape` (batch first) on the source's device."""

    def draw(size, *, generator, dtype, device):
        return torch.randint(high, size, generator=generator, dtype=dtype, device=device)

    return _draw(draw, shape, source, torch.int64)


def _draw(draw, shape: Sequence[int], source: Source, dtype: torch.dtype) -> Tensor:
    if isinstance(source, torch.Generator):
        return draw(tuple(shape), generator=source, dtype=dtype, device=source.device)
    rows = source.stop - source.start
    if shape[0] != rows:
        raise ValueError(f"asked for {shape[0]} rows, but this share of the batch holds {rows}")
    whole = (source.total, *shape[1:])
    numbers = draw(whole, generator=source.generator, dtype=dtype, device=source.generator.device)
    return numbers[source.start : source.stop]


def permutation(n: int, seed: int, purpose: str, step: int = 0) -> Tensor:
    """A random order of n items, int64 (n,), on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, step))


def image_noise(seed: int, purpose: str, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise (len(indices), *shape) in which row k belongs to image
    indices[k] alone.

    Drawn on the CPU by the counter-based generator Philox, one counter range an image, so image i
    is the same in any batch and for every device it is later moved to.
    """
    key = _key(seed, purpose)
    rows = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(i)])).standard_normal(
            tuple(shape), dtype=np.float32
        )
        for i in indices
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def step_noise(
    seed: int, purpose: str, indices: Sequence[int], shape: Sequence[int]
) -> Callable[[int], Tensor]:
    """The noise of a random sampler: noise(i) is `image_noise` of draw number i."""
    return lambda i: image_noise(seed, f"{purpose}/{i}", indices, shape)


@contextmanager
def seeded(seed: int, purpose: str, step: int = 0) -> Iterator[None]:
    """Runs its block with torch's global CPU generator keyed by (seed, purpose, step), then puts
    the old state back: for what draws from that generator by itself, such as layer initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_step_key(seed, purpose, step))
        yield
