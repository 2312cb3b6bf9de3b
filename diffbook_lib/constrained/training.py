"""Dual training of whatever denoising loss: the Lagrangian is the loss, the multipliers
are the state of the training, and their ascent follows a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffbook_lib import rng
from diffbook_lib.constrained.ascent import Ascent, Multipliers, running_mean

Measures = dict[str, Tensor]
Reference = Callable[..., Tensor]  # error of (draw, label) (batch,)
VIOLATION, MULTIPLIER = "violation", "lambda"


class Problem(Protocol):
    """A denoising loss in two parts, so that two networks can see the same draws."""

    def draw(self, x: Tensor, source: rng.Source) -> Any:
        """A named tuple of tensors (batch, ...)."""

    def error(self, net: Any, draw: Any, label: Tensor | None = None) -> Tensor:
        """One number an example (batch,)."""


class Groups(Protocol):
    """A batch that holds the objective's examples as group 0 and each constraint's."""

    x: Tensor
    label: Tensor | None
    group: Tensor

    def by_group(self, values: Tensor) -> Tensor:
        """(batch,) -> (groups, batch), each row's mean over the batch being a group's."""


@dataclass(frozen=True)
class Timetable:
    """When the multipliers move, in a training of `steps` steps, counted from 1.

    primal_steps: for each dual step. dual_warmup: steps before the first, while the
    untrained network violates everything. finish: steps at the end with the multipliers
    frozen at their average over the last quarter of the ascent. memory: what a running
    mean of the violations keeps at each step; 0: the dual step sees the last batch alone.
    moments: how many points of the path are kept.

    Raises ValueError where no dual step is left.
    """

    steps: int
    primal_steps: int = 1
    dual_warmup: int = 0
    finish: int = 0
    memory: float = 0.0
    moments: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ValueError(
                f"memory is {self.memory}; it must be at least 0 and below 1"
            )
        if self.primal_steps < 1 or self.last <= self.dual_warmup:
            raise ValueError(
                f"of {self.steps} steps with a warm-up of {self.dual_warmup} and a finish of "
                f"{self.finish}, none is left for an ascent at every {self.primal_steps}th step"
            )

    @property
    def last(self) -> int:
        """The last dual step."""
        return (self.steps - self.finish) // self.primal_steps * self.primal_steps

    @property
    def averaged_from(self) -> int:
        """The step after which multipliers are averaged."""
        return self.last - max(self.primal_steps, (self.last - self.dual_warmup) // 4)

    @property
    def period(self) -> int:
        """Steps between two moments of the path."""
        return max(1, self.steps // self.moments)

    def is_dual(self, step: int) -> bool:
        """Whether the multipliers move after this step."""
        return self.dual_warmup < step <= self.last and step % self.primal_steps == 0


class Outcome(NamedTuple):
    """What a training found: multipliers averaged over the end of the ascent, violations
    averaged likewise, both (m,), and what they say about feasibility.

    margin: sum of w_i v_i with w = multiplier / sum; where multipliers are so large that
    the network minimises this sum, no model violates its worst constraint by less.
    infeasible: a multiplier stayed at the cap and the margin is positive.
    """

    multipliers: Tensor
    violations: Tensor
    margin: float
    infeasible: bool


class Dual(nn.Module):
    """The multipliers of the constraints `names` while a network trains.

    start: where they start. scale: scale(step) of the dual step, where it follows the
    learning rate. used: the multipliers in the loss now, float32 (m,). path: `used` and
    the running violations at each moment, (moments, 2, m). All of it is the state that a
    checkpoint holds.
    """

    used: Tensor
    signal: Tensor
    before: Tensor
    means: Tensor
    count: Tensor
    path: Tensor

    def __init__(
        self,
        names: Sequence[str],
        ascent: Ascent,
        timetable: Timetable,
        start: float = 0.0,
        scale: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.names, self.ascent, self.timetable = tuple(names), ascent, timetable
        self.scale = scale or (lambda step: 1.0)
        m = len(self.names)
        first = Multipliers.at(torch.full((m,), start))
        for name, value in first._asdict().items():
            self.register_buffer(name, value)
        for name in ("signal", "before"):
            self.register_buffer(name, torch.zeros(m, dtype=torch.float64))
        self.register_buffer("used", first.lam.float())
        self.register_buffer("means", torch.zeros(2, m, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        moments = timetable.steps // timetable.period
        self.register_buffer("path", torch.zeros(moments, 2, m))

    @property
    def multipliers(self) -> Multipliers:
        """Those of the ascent, with what certifies them."""
        return Multipliers(*map(self.get_buffer, Multipliers._fields))

    def after_step(self, step: int, measures: Mapping[str, Tensor]) -> None:
        """Take up the violations of a step, means over the whole batch, and move the
        multipliers where it is time to. Raises RuntimeError where they break their
        certificate: something else has changed them."""
        times = self.timetable
        found = torch.stack(
            [measures[f"{VIOLATION}/{name}"].double() for name in self.names]
        )
        self.signal.lerp_(found, 1.0 if step == 1 else 1 - times.memory)
        if step <= times.dual_warmup or step == 1:
            self.before.copy_(self.signal)
        if times.is_dual(step):
            self._ascend(step)
        if times.finish and step == times.steps - times.finish:
            self.used.copy_(self.means[0])
        moment, left = divmod(step, times.period)
        if left == 0 and moment <= len(self.path):
            self.path[moment - 1] = torch.stack([self.used.double(), self.signal])
            if not self.multipliers.certified():
                raise RuntimeError(
                    f"step {step}: the mean violations "
                    f"{self.multipliers.mean_violation().tolist()} are above the bound "
                    f"{self.multipliers.bound().tolist()} of an ascent that nothing disturbed"
                )

    def _ascend(self, step: int) -> None:
        change = self.signal - self.before
        moved = self.ascent.step(
            self.multipliers, self.signal, change, self.scale(step)
        )
        for name, value in moved._asdict().items():
            self.get_buffer(name).copy_(value)
        self.before.copy_(self.signal)
        self.used.copy_(moved.lam)
        if step > self.timetable.averaged_from:
            self.count += 1
            now = torch.stack([moved.lam, self.signal])
            self.means.copy_(running_mean(self.means, now, self.count))

    def outcome(self) -> Outcome:
        """What the training has found; RuntimeError before the averages begin."""
        if not self.count:
            raise RuntimeError(
                f"multipliers are averaged from step {self.timetable.averaged_from} on; "
                "train to the end first"
            )
        multipliers, violations = self.means.cpu()
        margin = float(multipliers @ violations / multipliers.sum().clamp(min=1e-300))
        capped = bool((multipliers >= self.ascent.cap * (1 - 1e-6)).any())
        return Outcome(multipliers, violations, margin, capped and margin > 0)


class Fixed(nn.Module):
    """Multipliers that stay what they are: penalty weights."""

    used: Tensor

    def __init__(self, names: Sequence[str], value: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("used", torch.full((len(self.names),), value))


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """The loss l_0 + sum_i lambda_i l_i of a batch of groups, in one forward pass.

    thresholds: b_i of each constraint. Violations are unit (l_i - r_i) - b_i with the
    losses averaged over group i. reference: error(draw, label) of what the network is held
    against, r_i, on the network's own draws (then unit turns the gap into nats, see
    `denoising.nats`, and the noise in both cancels); None: r_i = 0, thresholds on the raw
    loss.
    """

    problem: Problem
    dual: Dual | Fixed
    thresholds: Sequence[float]
    reference: Reference | None = None
    unit: float = 1.0

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.dual.names):
            raise ValueError(
                f"there are {len(self.thresholds)} thresholds {tuple(self.thresholds)} for the "
                f"constraints {', '.join(self.dual.names)}; give one for each"
            )

    def loss(
        self, net: Any, batch: Groups, source: rng.Source
    ) -> tuple[Tensor, Measures]:
        """One number an example (batch,), whose mean over the batch is the Lagrangian up to
        its constant, and as measures each violation and multiplier."""
        draw = self.problem.draw(batch.x, source)
        error = self.problem.error(net, draw)
        weights = torch.cat([self.dual.used.new_ones(1), self.dual.used])
        loss = weights @ batch.by_group(error)
        rows = batch.group.nonzero().flatten()
        gaps = error.new_zeros(len(error)).index_copy(
            0,
            rows,
            self._gap(error[rows], _rows(draw, rows), _rows(batch.label, rows)),
        )
        measures: Measures = {}
        for i, name in enumerate(self.dual.names):
            measures[f"{VIOLATION}/{name}"] = (
                batch.by_group(gaps)[i + 1] - self.thresholds[i]
            )
            measures[f"{MULTIPLIER}/{name}"] = self.dual.used[i].expand(len(error))
        return loss, measures

    @torch.no_grad()
    def violation(
        self, net: Any, x: Tensor, label: Tensor | None, i: int, source: rng.Source
    ) -> Tensor:
        """What each of examples x (batch, ...) of constraint i contributes to the mean
        that is its violation, (batch,)."""
        draw = self.problem.draw(x, source)
        error = self.problem.error(net, draw)
        return self._gap(error, draw, label) - self.thresholds[i]

    @torch.no_grad()
    def _gap(self, error: Tensor, draw: Any, label: Tensor | None) -> Tensor:
        """unit (l - r) of each example."""
        if self.reference is None or not len(error):
            return self.unit * error
        return self.unit * (error - self.reference(draw, label).to(error.dtype))


def unconstrained(
    problem: Problem,
    net: Any,
    batch: Groups,
    source: rng.Source,
    labelled: bool = False,
) -> Tensor:
    """The objective alone, one number an example (batch,); labelled: tell the network."""
    draw = problem.draw(batch.x, source)
    return problem.error(net, draw, batch.label if labelled else None)


def _rows(parts: Any, rows: Tensor) -> Any:
    """Those rows of a tensor, of each in a named tuple, or of None."""
    if parts is None or isinstance(parts, Tensor):
        return parts if parts is None else parts[rows]
    return type(parts)(*(part[rows] for part in parts))
