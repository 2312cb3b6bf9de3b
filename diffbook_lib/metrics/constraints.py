"""What dual training reached: violations of the trained network, multipliers and their
certificate."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from diffbook_lib import rng
from diffbook_lib.data import Dataset
from diffbook_lib.diffusion import Net
from diffbook_lib.metrics.measurement import Measurement

if TYPE_CHECKING:  # the pages of other methods need not follow this one
    from diffbook_lib.constrained import Dual, Lagrangian


@torch.no_grad()
def violation(
    lagrangian: "Lagrangian",
    net: Net,
    dataset: Dataset,
    constraint: str,
    examples: str = "training",
    *,
    draws: int = 2000,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Measurement:
    """The violation of a constraint by a network, on `draws` noisy examples of a data set, at
    {"constraint": its name, "examples": what these are}; above 0 it is violated.

    Two networks with one seed see the same draws. device: the network's.
    """
    i = lagrangian.dual.names.index(constraint)
    x, label = dataset.to(device).batch(seed, 0, draws)[:2]
    source = rng.generator(seed, "violation", i, device)
    each = lagrangian.violation(net, x, label, i, source).double()
    return Measurement(
        "Violation",
        each.mean().item(),
        draws,
        seed,
        at={"constraint": constraint, "examples": examples},
        details={"standard_error": each.std().item() / draws**0.5},
    )


def multipliers(dual: "Dual") -> Iterator[Measurement]:
    """The multiplier of each constraint after a dual training, averaged over the end of its
    ascent, at {"constraint": its name}; and, where no model satisfies the thresholds, the
    feasibility margin that the training has seen, which is then above 0.

    details: the path of the multiplier and of the running violation, a point every
    "steps_apart" steps; the ascent's mean violation and its bound, which the certificate
    holds together: "mean_violation" is never above "bound".
    """
    found, ascent, times = dual.outcome(), dual.multipliers, dual.timetable
    means, bounds = ascent.mean_violation(), ascent.bound()
    for i, name in enumerate(dual.names):
        used, violations = dual.path[:, :, i].T.tolist()
        details = {
            "multipliers": used,
            "violations": violations,
            "steps_apart": times.period,
            "mean_violation": means[i].item(),
            "bound": bounds[i].item(),
        }
        at, value = {"constraint": name}, found.multipliers[i].item()
        steps = times.last - times.averaged_from
        yield Measurement("Multiplier", value, steps, at=at, details=details)
    if found.infeasible:
        yield Measurement("Feasibility margin", found.margin, times.steps)
