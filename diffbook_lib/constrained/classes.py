"""Constraints that ask for classes: the closed form."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffbook_lib.constrained.problem import Infeasible, kl


class ClassBalance(NamedTuple):
    """lam (m,); frequencies (classes,) of the optimal model; value KL(q_0 | p) in nats;
    active, the constraints with lam_i > 0, from 0."""

    lam: Tensor
    frequencies: Tensor
    value: float
    active: list[int]


def class_balance(pi: Tensor, minority: Sequence[int], b: Tensor) -> ClassBalance:
    """The optimum where q_i is the part of the data in class minority[i], and no two
    classes share an image; proportions pi (classes,), thresholds b (m,) in nats.

    KL(q_i | p) = -log p(class), so b_i asks for a frequency of exp(-b_i) or more, and b_i
    = log(classes) for an even share. The active classes get what they ask for, the others
    share the rest as they did. Raises Infeasible where the frequencies asked for leave
    nothing, ValueError where the classes are not different ones.
    """
    pi, asked = pi.double(), (-b.double()).exp()
    if len({*minority}) < len(minority) or len(minority) != len(asked):
        raise ValueError(
            f"classes {list(minority)} with thresholds {b.tolist()}; need different "
            "classes and one threshold each"
        )
    if float(asked.sum()) >= 1:
        raise Infeasible(float(asked.sum().log()))
    own = pi[list(minority)]
    active = torch.ones(len(asked), dtype=torch.bool)
    for i in (asked / own).argsort().tolist():  # the most easily satisfied first
        rest = (1 - own[active].sum()) / (1 - asked[active].sum())
        if asked[i] * rest > own[i]:
            break
        active[i] = False
    rest = (1 - own[active].sum()) / (1 - asked[active].sum())
    lam = torch.where(active, asked * rest - own, 0.0)
    frequencies = pi / rest
    frequencies[torch.tensor(minority)[active]] = asked[active]
    value = float(kl(pi.log(), frequencies.log()))
    return ClassBalance(lam, frequencies, value, torch.where(lam > 0)[0].tolist())
