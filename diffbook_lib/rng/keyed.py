"""Numbers of a step: drawn for the whole global batch, of which each worker keeps its
rows."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def key_of(seed: int, purpose: str) -> int:
    """A 64-bit key for (seed, purpose)."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or a positive integer")
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _step_key(seed: int, purpose: str, step: int) -> int:
    """torch's CPU generator keeps only the low 32 bits of its seed; adding the step
    to the key keeps any two of the first 2**32 steps of a purpose apart, which
    hashing it in would not."""
    if step < 0:
        raise ValueError(f"step is {step}; it must be 0 or a positive integer")
    return (key_of(seed, purpose) + step) % 2**63


def generator(
    seed: int, purpose: str, step: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """The generator of one step of one purpose. Raises ValueError for a negative seed
    or step."""
    return torch.Generator(device).manual_seed(_step_key(seed, purpose, step))


@dataclass(frozen=True)
class Share:
    """One worker's rows `start:stop` of the random numbers drawn for a global batch
    of `total`.

    Every worker draws the whole batch and keeps its rows, so the numbers do not
    depend on how many workers there are.
    """

    generator: torch.Generator
    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.total:
            raise ValueError(
                f"rows {self.start}:{self.stop} are no share of {self.total} rows"
            )


Source = torch.Generator | Share


def normal(
    shape: Sequence[int], source: Source, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers of `shape` (batch first) on the source's device."""
    return _draw(torch.randn, shape, source, dtype)


def uniform(
    shape: Sequence[int], source: Source, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1) of `shape` (batch first) on the source's device."""
    return _draw(torch.rand, shape, source, dtype)


def integers(high: int, shape: Sequence[int], source: Source) -> Tensor:
    """Uniform int64 in {0, ..., high - 1} of `shape` (batch first) on the source's
    device."""

    return _draw(partial(torch.randint, high), shape, source, torch.int64)


def stratified(n: int, source: Source) -> Tensor:
    """A uniform number in [0, 1) for each of n rows, float64 (n,), on the source's
    device.

    Each of as many equal strata as the global batch has rows holds one of its
    numbers, in random order; the n rows of a share are those of the whole.
    """

    def draw(
        size: tuple[int, ...],
        *,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        order = torch.randperm(size[0], generator=generator, device=device)
        # 24 bits within the stratum: the sum is exact and stays below its upper end
        within = torch.rand(size, generator=generator, device=device)
        return (order.to(dtype) + within.to(dtype)) / size[0]

    return _draw(draw, (n,), source, torch.float64)


def _draw(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    source: Source,
    dtype: torch.dtype,
) -> Tensor:
    if isinstance(source, torch.Generator):
        return draw(tuple(shape), generator=source, dtype=dtype, device=source.device)
    rows = source.stop - source.start
    if shape[0] != rows:
        raise ValueError(
            f"asked for {shape[0]} rows, but this share of the batch holds {rows}"
        )
    whole = (source.total, *shape[1:])
    numbers = draw(
        whole, generator=source.generator, dtype=dtype, device=source.generator.device
    )
    return numbers[source.start : source.stop]


def permutation(n: int, seed: int, purpose: str, step: int = 0) -> Tensor:
    """A random order of n items, int64 (n,), on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, step))


@contextmanager
def seeded(seed: int, purpose: str, step: int = 0) -> Iterator[None]:
    """Runs its block with torch's global CPU generator keyed by (seed, purpose,
    step), then puts the old state back: for what draws from that generator by itself,
    such as layer initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_step_key(seed, purpose, step))
        yield
