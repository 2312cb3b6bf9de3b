"""Averages of a network's weights over the course of training.

Two rules, both average <- beta(t) average + (1 - beta(t)) weights after step t = 1, 2, ...:

classic  beta(t) = min(decay, (1 + t) / (10 + t)): an exponential profile, short at first.
power    beta(t) = (1 - 1/t)^(gamma + 1): weight t^gamma for step t, so that the width of the
         profile is a constant fraction sigma_rel of the training time so far
         (Karras et al. 2024, arXiv:2312.02696, Eqs. 121-127).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

RULES = ("classic", "power")
WIDEST = 12**-0.5  # sigma_rel of the uniform average, gamma = 0


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma >= 0 whose profile t^gamma on [0, T] has standard deviation sigma_rel T.

    The positive root of (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1 (Eq. 126).
    """
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; it must lie between 0 and {WIDEST:.4f} (the uniform "
            "average), for example 0.1"
        )
    s = sigma_rel**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def power_width(gamma: float) -> float:
    """sigma_rel of the profile t^gamma, the inverse of `power_exponent`."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


class EMA:
    """The average of a network's weights, float32; its buffers are copied, not averaged.

    `value` is the largest decay for the rule "classic" and sigma_rel for the rule "power".
    """

    def __init__(self, net: nn.Module, rule: str, value: float) -> None:
        if rule not in RULES:
            raise ValueError(f"unknown EMA rule {rule!r}; rules: {', '.join(RULES)}")
        if rule == "classic" and not 0 <= value < 1:
            raise ValueError(f"the decay is {value}; it must lie in [0, 1), for example 0.999")
        self.rule, self.value = rule, value
        self.exponent = power_exponent(value) if rule == "power" else 0.0
        self.updates = 0
        self.parameters = {
            name: p.detach().to(torch.float32, copy=True) for name, p in net.named_parameters()
        }
        self.buffers = {name: b.detach().clone() for name, b in net.named_buffers()}

    def beta(self, t: int) -> float:
        """The share of the old average that update number t = 1, 2, … keeps."""
        if self.rule == "power":
            return (1 - 1 / t) ** (self.exponent + 1)
        return min(self.value, (1 + t) / (10 + t))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the network's weights after one more step."""
        self.updates += 1
        weights = [p.to(torch.float32) for p in net.parameters()]
        averages = list(self.parameters.values())
        torch._foreach_lerp_(averages, weights, 1 - self.beta(self.updates))
        for kept, b in zip(self.buffers.values(), net.buffers(), strict=True):
            kept.copy_(b)

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        """Give the network the averaged weights and the latest buffers."""
        for p, average in zip(net.parameters(), self.parameters.values(), strict=True):
            p.copy_(average)
        for b, kept in zip(net.buffers(), self.buffers.values(), strict=True):
            b.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and buffers under their names in the network, and the number of updates."""
        return {**self.parameters, **self.buffers, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; ValueError if the names differ."""
        own = self.parameters | self.buffers
        if different := sorted(set(state) ^ {*own, "updates"}):
            raise ValueError(f"this average belongs to another network; they differ in {different}")
        self.updates = int(state["updates"])
        for name, tensor in own.items():
            tensor.copy_(state[name])
