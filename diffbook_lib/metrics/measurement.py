"""A measured figure with what is needed to judge it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher", "equal"]
INSIDE = {
    "lower": "inside the floor: noise",
    "higher": "as high as in real data",
    "equal": "as in real data",
}


@dataclass(frozen=True)
class Measurement:
    """One figure, measured on `samples` samples that were drawn with `seed`.

    floor: the mean of what several draws of as many real examples give, None where there is no
        such thing. The draws stand in details["floor_draws"].
    better: whether a lower or a higher value is better, or one "equal" to that of real examples.
    details: plain values; details["standard_error"] is shown beside the value.
    """

    name: str
    value: float
    samples: int
    seed: int | None = None
    floor: float | None = None
    better: Better = "lower"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def floor_range(self) -> tuple[float, float] | None:
        """The lowest and the highest of the draws of real examples."""
        draws = self.details.get("floor_draws")
        return (min(draws), max(draws)) if draws else None

    @property
    def inside_floor(self) -> bool:
        """Whether real examples give no better value, so that what is left is noise."""
        if self.floor_range is None:
            return False
        low, high = self.floor_range
        return {
            "lower": self.value <= high,
            "higher": self.value >= low,
            "equal": low <= self.value <= high,
        }[self.better]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, as a record keeps them."""
        return {name: value for name, value in asdict(self).items() if name != "better"}

    def __str__(self) -> str:
        error, floor = self.details.get("standard_error"), self.floor_range
        digits = _decimals(self.value, error, *(floor or ()))
        value = f"{self.value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
        parts = [f"n = {self.samples}"]
        if floor:
            word = "floor" if self.better == "lower" else "real"
            parts.append(f"{word} {floor[0]:.{digits}f}–{floor[1]:.{digits}f}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        verdict = f", {INSIDE[self.better]}" if self.inside_floor else ""
        return f"{self.name} {value} ({', '.join(parts)}){verdict}"


def measured(
    name: str,
    value: float,
    samples: int,
    seed: int | None = None,
    draws: Sequence[float] = (),
    better: Better = "lower",
    **details: Any,
) -> Measurement:
    """A measurement whose floor is the mean of `draws`."""
    if draws:
        details["floor_draws"] = list(draws)
    floor = sum(draws) / len(draws) if draws else None
    return Measurement(name, value, samples, seed, floor, better, details)


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
