"""What all samplers share: a sampler is a generator that yields the state after each
step."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from diffbook_lib.bars import progress_bar

Noise = Callable[[int], Tensor]
Walked = TypeVar("Walked")


class Sample(NamedTuple):
    """What sampling returns: images (batch, ...) and the network calls made."""

    x: Tensor
    nfe: int


class CountCalls:
    """A denoiser or score that counts its calls: `nfe`, network function
    evaluations."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.nfe = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.nfe += 1
        return self.function(*args, **kwargs)


def run(
    states: Iterator[Walked], steps: int | None = None, progress: bool = False
) -> Walked:
    """The last state; with `progress`, a bar over `steps`."""
    if progress:
        states = iter(
            progress_bar()(states, total=steps, desc="sampling", leave=False)
        )
    for state in states:  # noqa: B007
        pass
    return state


def steps(times: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Start and end of each step; ValueError unless the times fall."""
    if len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(
            f"times must fall from 1 towards 0 in one step or more, got {times}"
        )
    return pairwise(times)


def filled(t: Tensor, x: Tensor) -> Tensor:
    """One time for the whole batch (batch,)."""
    return t.to(x.device).expand(len(x))
