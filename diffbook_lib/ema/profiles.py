"""Averages of a network's weights over the course of training.

All follow average <- beta average + (1 - beta) weights after step t = 1, 2, ...; a
profile says beta, and `profile` finds one by its name, such as "classic-0.999",
"power-0.1", "halflife-500000" or "halflife-500000-ramp-0.05".
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

WIDEST = 12**-0.5  # sigma_rel of the uniform average, gamma = 0
NUMBER = r"(\d*\.?\d+(?:e[+-]?\d+)?)"


class Profile(Protocol):
    """How an average forgets."""

    @property
    def name(self) -> str:
        """The text by which `profile` finds it."""

    def beta(self, step: int, batch: int) -> float:
        """The share of the old average that update number step = 1, 2, ... keeps;
        `batch` images a step."""


@dataclass(frozen=True)
class Classic:
    """beta = min(decay, (1 + t) / (10 + t)): an exponential profile, short at
    first."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"the decay is {self.decay}; it must lie in [0, 1), such as 0.999"
            )

    @property
    def name(self) -> str:
        return f"classic-{self.decay:.15g}"

    def beta(self, step: int, batch: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Power:
    """beta = (1 - 1/t)^(gamma + 1): step t weighs t^gamma, so that the width of the
    profile is the constant fraction sigma_rel of the training time so far (Karras et
    al. 2024, arXiv:2312.02696, Eqs. 121-127)."""

    sigma_rel: float

    def __post_init__(self) -> None:
        power_exponent(self.sigma_rel)

    @property
    def name(self) -> str:
        return f"power-{self.sigma_rel:.15g}"

    def beta(self, step: int, batch: int) -> float:
        return float((1 - 1 / step) ** (power_exponent(self.sigma_rel) + 1))


@dataclass(frozen=True)
class HalfLife:
    """beta = 0.5^(batch / h): what is h images old weighs half. With a ramp, h is at
    most `ramp` times the images seen before the step (the released code of Karras et
    al. 2022)."""

    images: float
    ramp: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("half-life", self.images), ("ramp", self.ramp)):
            if value is not None and not value > 0:
                raise ValueError(f"the {name} is {value}; it must be positive")

    @property
    def name(self) -> str:
        ramp = "" if self.ramp is None else f"-ramp-{self.ramp:.15g}"
        return f"halflife-{self.images:.15g}{ramp}"

    def beta(self, step: int, batch: int) -> float:
        h = self.images
        if self.ramp is not None:
            h = min(h, (step - 1) * batch * self.ramp)
        return 0.5 ** (batch / h) if h > 0 else 0.0


def profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError for a text that is none, or a
    number outside its range."""
    if found := re.fullmatch(f"classic-{NUMBER}", name):
        return Classic(float(found[1]))
    if found := re.fullmatch(f"power-{NUMBER}", name):
        return Power(float(found[1]))
    if found := re.fullmatch(f"halflife-{NUMBER}(?:-ramp-{NUMBER})?", name):
        return HalfLife(float(found[1]), float(found[2]) if found[2] else None)
    raise ValueError(
        f"{name!r} is no average of weights; write classic-DECAY (classic-0.999), "
        "power-SIGMA_REL (power-0.1), or halflife-IMAGES with or without -ramp-RATIO "
        "(halflife-500000, halflife-500000-ramp-0.05)"
    )


@cache
def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma >= 0 whose profile t^gamma on [0, T] has standard deviation
    sigma_rel T, found by bisection to float64 accuracy: `power_width` falls with
    gamma, and stays below 1 / (gamma + 2)."""
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; it must lie between 0 and {WIDEST:.4f} (the uniform "
            "average), for example 0.1"
        )
    low, high = 0.0, 1 / sigma_rel
    while low < (gamma := (low + high) / 2) < high:
        low, high = (gamma, high) if power_width(gamma) > sigma_rel else (low, gamma)
    return gamma


def power_width(gamma: float) -> float:
    """sigma_rel of the profile t^gamma, the inverse of `power_exponent` (Eq. 126)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_response(sigma_rel: float, at: int, length: int) -> Tensor:
    """The profile t^gamma sampled at t = 0, 1, ..., length - 1, zero after `at`, with sum
    1: float64 (length,)."""
    t = torch.arange(length, dtype=torch.float64)
    response = torch.where(t <= at, (t / at) ** power_exponent(sigma_rel), 0.0)
    return response / response.sum()


class EMA:
    """The average of a network's weights, in float32 or, for float64 weights, float64;
    its buffers are copied, not averaged.

    `batch`: the images of a step, over all processes.
    """

    def __init__(self, net: nn.Module, profile: Profile, batch: int) -> None:
        self.profile, self.batch = profile, batch
        self.updates = 0
        self.parameters = {
            name: p.detach().to(precise(p), copy=True)
            for name, p in net.named_parameters()
        }
        self.buffers = {name: b.detach().clone() for name, b in net.named_buffers()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the network's weights after one more step."""
        self.updates += 1
        weights = [p.to(precise(p)) for p in net.parameters()]
        averages = list(self.parameters.values())
        beta = self.profile.beta(self.updates, self.batch)
        torch._foreach_lerp_(averages, weights, 1 - beta)
        for kept, b in zip(self.buffers.values(), net.buffers(), strict=True):
            kept.copy_(b)

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        """Give the network the averaged weights and the latest buffers."""
        for p, average in zip(
            net.parameters(), self.parameters.values(), strict=True
        ):
            p.copy_(average)
        for b, kept in zip(net.buffers(), self.buffers.values(), strict=True):
            b.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and buffers under their names in the network, and the number
        of updates."""
        own = self.parameters | self.buffers
        return own | {"updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; ValueError if the names differ."""
        own = self.parameters | self.buffers
        if different := sorted(set(state) ^ {*own, "updates"}):
            raise ValueError(
                f"this average belongs to another network; they differ in {different}"
            )
        self.updates = int(state["updates"])
        for name, tensor in own.items():
            tensor.copy_(state[name])


def precise(p: Tensor) -> torch.dtype:
    """The type in which an average of p is kept."""
    return torch.promote_types(p.dtype, torch.float32)
