"""What is trained: the one object that the notebook, `train DIR` and torchrun share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from diffbook_lib.data import Dataset
from diffbook_lib.specs import RunSpec

Measures = dict[str, Tensor]
# loss(net, batch, source) -> one number an example (batch,), or that and measures, each (batch,)
Loss = Callable[..., Tensor | tuple[Tensor, Measures]]
AfterStep = Callable[[int, Measures], None]


@dataclass(frozen=True, eq=False)
class Task:
    """A network and what it learns.

    net: the network; samples are drawn with the average of its weights.
    loss: loss(net, batch, source) gives one number an example, (batch,), and optionally measures
        by name, one number an example each. The trainer averages measures over micro-batches and
        processes exactly as it averages the loss. A loss that is a module is moved to the device.
    dataset: where batches come from.
    state: what else changes while training, by name: modules whose buffers are saved and whose
        parameters are optimised with the network's. One with a method
        `after_step(step, measures)` is called after every optimiser step, measures being numbers
        on the device (0-dimensional tensors), equal in every process.
    after_step: the same for what has no state, such as a projection of the weights. It comes
        before those of `state`, and both before the averages of the weights.
    learning_rate: learning_rate(step), steps counted from 1, where a method's own course of the
        rate is none of the specification's.
    """

    net: nn.Module
    loss: Loss
    dataset: Dataset
    state: Mapping[str, nn.Module] = field(default_factory=dict)
    after_step: AfterStep | None = None
    learning_rate: Callable[[int], float] | None = None

    def hooks(self) -> list[AfterStep]:
        """Everything to be called after a step, in order."""
        found: list[Any] = [self.after_step]
        found += [getattr(part, "after_step", None) for part in self.state.values()]
        return [hook for hook in found if hook]


def learning_rate(step: int, spec: RunSpec) -> float:
    """The learning rate of step number `step`, counted from 1.

    A linear warm-up to `lr` over `warmup_steps` or `warmup_images`, then constant; half a cosine
    or a line to `lr_end` at the last step; or falling as sqrt(reference_steps / step)
    (reference_steps: where the fall begins; by default the end of the warm-up).
    """
    warmup = spec.warmup_steps or spec.warmup_images / spec.batch
    rate = spec.lr * min(step / warmup, 1) if warmup else spec.lr
    course = min(max(step - 1 - warmup, 0) / max(spec.steps - warmup, 1), 1)
    match spec.schedule:
        case "cosine":
            return (
                spec.lr_end
                + (rate - spec.lr_end) * (1 + math.cos(math.pi * course)) / 2
            )
        case "linear":
            return spec.lr_end + (rate - spec.lr_end) * (1 - course)
        case "inverse-sqrt":
            reference = spec.reference_steps or max(warmup, 1)
            return rate / math.sqrt(max(step / reference, 1))
    return rate
