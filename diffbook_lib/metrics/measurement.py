"""A measured figure with what is needed to judge it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

Better = Literal["lower", "higher", "equal"]
INSIDE = {
    "lower": "inside the floor: noise",
    "higher": "as high as in real data",
    "equal": "as in real data",
}


@dataclass(frozen=True)
class Measurement:
    """One figure, measured on `samples` samples that were drawn with `seed`.

    name: what was measured, never how or with which numbers: those stand in `at` and `details`.
    floor: the mean of what a perfect sampler gives, drawn several times; None where there
        is no such thing. The draws stand in details["floor_draws"].
    at: coordinates of the samples, such as {"sampler": "sscs", "nfe": 20}: numbers and words.
    details: plain values; details["standard_error"] is shown beside the value.
    better: whether a lower or a higher value is better, or one "equal" to that of real examples.

    Raises ValueError for a coordinate that is no number or word.
    """

    name: str
    value: float
    samples: int
    seed: int | None = None
    floor: float | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    better: Better = "lower"

    def __post_init__(self) -> None:
        for key, value in self.at.items():
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"{self.name}: the coordinate {key} is {value!r}, a {type(value).__name__}; "
                    "coordinates are numbers and words"
                )

    @property
    def floor_range(self) -> tuple[float, float] | None:
        """The lowest and the highest of the draws of a perfect sampler."""
        draws = self.details.get("floor_draws")
        return (min(draws), max(draws)) if draws else None

    @property
    def inside_floor(self) -> bool:
        """Whether a perfect sampler gives no better value, so that what is left is noise.

        With k draws a perfect sampler is found inside k times of k + 1, where the value
        must be "equal" to that of real examples k - 1 times of k + 1.
        """
        if self.floor_range is None:
            return False
        low, high = self.floor_range
        return {
            "lower": self.value <= high,
            "higher": self.value >= low,
            "equal": low <= self.value <= high,
        }[self.better]

    def with_floor(self, draws: Sequence[float]) -> "Measurement":
        """The same figure, judged by these draws of a perfect sampler."""
        details = {**self.details, "floor_draws": list(draws)}
        return replace(self, floor=sum(draws) / len(draws), details=details)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, as a record keeps them."""
        return asdict(self)

    def __str__(self) -> str:
        error, floor = self.details.get("standard_error"), self.floor_range
        digits = _decimals(self.value, error, *(floor or ()))
        value = f"{self.value:.{digits}f}" + (
            "" if error is None else f" ± {error:.{digits}f}"
        )
        parts = [f"n = {self.samples}"]
        if floor:
            word = "floor" if self.better == "lower" else "real"
            parts.append(f"{word} {floor[0]:.{digits}f}–{floor[1]:.{digits}f}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        place = "".join(f", {key} {value}" for key, value in self.at.items())
        verdict = f", {INSIDE[self.better]}" if self.inside_floor else ""
        return f"{self.name}{place}{':' * bool(place)} {value} ({', '.join(parts)}){verdict}"


class Measure(ABC):
    """Compares samples with real examples that are known beforehand.

    A call measures samples; `draws` perfect samplers of as many samples are its floor (0:
    none). A floor depends on the number of samples alone, so it is drawn once for each.

    seed: the seed of the samples; it also keys the floor.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._floors: dict[tuple[int, int], list[float]] = {}

    @abstractmethod
    def figure(self, samples: Tensor) -> Measurement:
        """The figure of samples (n, ...), without a floor."""

    @abstractmethod
    def floor(self, n: int, draws: int) -> list[float]:
        """What `draws` perfect samplers give, each measured on n samples against real
        examples as many as are known here."""

    def __call__(self, samples: Tensor, draws: int = 10) -> Measurement:
        found = self.figure(samples)
        key = (found.samples, draws)
        if key not in self._floors:
            self._floors[key] = self.floor(*key)
        floor = self._floors[key]
        return found.with_floor(floor) if floor else found


def share_error(share: float, n: int) -> float:
    """The standard error of a share of n independent samples."""
    return math.sqrt(share * (1 - share) / n)


def _decimals(value: float, error: float | None, *floor: float) -> int:
    """Decimals that show two digits of the smallest number, one of an error or of a difference."""
    sizes = [
        value / 10,
        *(end / 10 for end in floor),
        error or 0,
        max(floor, default=0) - min(floor, default=0),
    ]
    finest = min((abs(size) for size in sizes if size), default=1)
    return min(6, max(0, -math.floor(math.log10(finest))))
