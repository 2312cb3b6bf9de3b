"""The optimum of a constrained problem, the way to it, and whether there is one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffbook_lib.constrained.ascent import Ascent, Multipliers
from diffbook_lib.constrained.problem import Infeasible, Problem

CENTRE_STEPS = 20_000  # towards the common centre
STEPS = 500  # of Newton's method; it takes about ten for each constraint
SETTLED = 1e-20  # what a step promises to raise the dual by, at the optimum
RIDGE = 1e-9  # added to the curvature, which vanishes where distributions are equal
ZERO = 1e-12  # no multiplier above 0 is smaller
ROUNDING = 1e-12  # of a gradient


class Feasibility(NamedTuple):
    """margin: how far the best model stays above the thresholds in the worst constraint,
    in the unit of the losses; negative where all can be met at once. weights (m,): of
    the constraints' distributions in that model. gap: the margin is right to it."""

    margin: float
    weights: Tensor
    gap: float


class Solution(NamedTuple):
    """The optimum. lam (m,); losses (m + 1,), the objective's first; slack b_i - loss_i
    and relaxation r_i (m,); values of primal and dual problem, equal; active, the
    constraints with a price, from 0."""

    lam: Tensor
    losses: Tensor
    slack: Tensor
    relaxation: Tensor
    primal: float
    dual: float
    active: list[int]


class Path(NamedTuple):
    """Dual ascent from its start on: lam (steps + 1, m), losses (steps + 1, m + 1) of the
    model trained at each, dual (steps + 1,), and the multipliers after the last step with
    their certificate."""

    lam: Tensor
    losses: Tensor
    dual: Tensor
    end: Multipliers


def feasibility(problem: Problem, tol: float = 1e-10) -> Feasibility:
    """min over models of max_i (loss_i - b_i), which is the maximum over weights w of
    sum_i w_i (loss_i - b_i) with the losses of the mixture w (Slater's condition holds
    where it is negative); relaxation is left out.

    By Blahut and Arimoto's iteration w_i <- w_i exp(loss_i - b_i) / sum, until the
    highest loss_i - b_i is within `tol` of the weighted one; at most 20000 times, for
    losses in nats or smaller. With b = 0 the common centre of the q_i; with b_i =
    -H(q_i) the mixture of the largest entropy.
    """
    for found in _towards_centre(problem):
        if found.gap < tol:
            break
    return found


def _towards_centre(problem: Problem) -> Iterator[Feasibility]:
    log_w = torch.zeros_like(problem.b).log_softmax(dim=0)
    for _ in range(CENTRE_STEPS):
        w = log_w.exp()
        violation = problem.losses_at(torch.cat([w.new_zeros(1), w]))[1:] - problem.b
        margin = float(w @ violation)
        yield Feasibility(margin, w, float(violation.max()) - margin)
        log_w = (log_w + violation).log_softmax(dim=0)


def _feasible(problem: Problem) -> bool:
    """Whether some model meets all thresholds with room to spare."""
    for found in _towards_centre(problem):
        if found.margin + found.gap < 0:
            return True
        if found.margin >= 0:
            return False
    return False


def solve(problem: Problem) -> Solution:
    """The multipliers that maximise the dual, and the model they give, by Newton's method
    on those above 0.

    Raises Infeasible, with the margin, where the constraints are hard and cannot be met
    by all at once with room to spare: the dual then grows without end.
    """
    if problem.alpha == 0 and not _feasible(problem):
        raise Infeasible(feasibility(problem).margin)
    lam = _maximiser(problem)
    losses = problem.losses(lam)
    relaxation = 2 * problem.alpha * lam
    price = problem.alpha * float(lam.square().sum())  # sum of r^2 / (4 alpha)
    return Solution(
        lam=lam,
        losses=losses,
        slack=problem.b - losses[1:],
        relaxation=relaxation,
        primal=float(losses[0]) + price,
        dual=float(problem.dual(lam)),
        active=[i for i, value in enumerate(lam.tolist()) if value > ZERO],
    )


def _maximiser(problem: Problem) -> Tensor:
    """The lam (m,) of the largest dual: Newton's method on the free multipliers, none of
    which falls more than tenfold in a step. One that reaches 0, or `ZERO` where its
    gradient at 0 is infinite, is set aside, and freed again when the others have settled
    and its own constraint fails."""
    lam = torch.ones_like(problem.b)
    free = torch.ones_like(lam, dtype=torch.bool)
    for _ in range(STEPS):
        gradient = problem.gradient(lam)
        step = torch.zeros_like(lam)
        curvature = problem.curvature(lam)[free][:, free]
        ridge = RIDGE * torch.eye(len(curvature), dtype=torch.float64)
        step[free] = torch.linalg.solve(ridge - curvature, gradient[free])
        promise = float(gradient[free] @ step[free])
        if promise >= SETTLED:
            falls = step < 0
            length = min([1.0, *(0.9 * lam[falls] / -step[falls]).tolist()])
            lam = lam + length * step
            fallen = (lam < ZERO) & (step < 0)
            lam[fallen], free = 0.0, free & ~fallen
            lam[fallen & problem.gradient(lam).isinf()] = ZERO
            continue
        waiting = torch.where(free, -torch.inf, gradient)
        if float(waiting.max()) <= ROUNDING:
            best: Tensor = (lam + step).clamp(min=0)
            return best
        freed = waiting.argmax()
        free[freed], lam[freed] = True, ZERO
    raise ArithmeticError(
        f"Newton's method has not settled in {STEPS} steps; it was at {lam.tolist()}"
    )


def ascend(
    problem: Problem, rule: Ascent, steps: int, lam: Tensor | None = None
) -> Path:
    """`steps` dual steps from lam (m,), 0 by default, each from the model that is the
    best at the multipliers so far. Raises ValueError where the rule relaxes otherwise
    than the problem."""
    if rule.alpha != problem.alpha:
        raise ValueError(
            f"the rule's alpha is {rule.alpha}, the problem's {problem.alpha}; give both "
            "the same"
        )
    start = torch.zeros_like(problem.b) if lam is None else lam
    states = list(_walk(problem, rule, steps, Multipliers.at(start)))
    path = torch.stack([state.lam for state in states])
    losses = torch.stack([problem.losses(at) for at in path])
    dual = torch.stack([problem.dual(at) for at in path])
    return Path(path, losses, dual, states[-1])


def _walk(
    problem: Problem, rule: Ascent, steps: int, at: Multipliers
) -> Iterator[Multipliers]:
    before = problem.violation(at.lam)
    yield at
    for _ in range(steps):
        violation = problem.violation(at.lam)
        at = rule.step(at, violation, change=violation - before)
        before = violation
        yield at


class DualFrames(NamedTuple):
    """A dual function and its maximum for f sets of thresholds (f, m), inf or nan where
    they cannot be met.

    g: on the grid of lam (f, k, ..., k), one axis a constraint. lam (f, m), its maximum;
    value (f,), that of the problem. losses (f, m + 1): of the optimal model.
    """

    g: Tensor
    lam: Tensor
    value: Tensor
    losses: Tensor


def dual_frames(problem: Problem, axis: Tensor, thresholds: Tensor) -> DualFrames:
    """The dual of `problem` with each row of `thresholds` (f, m) in place of b, on all
    combinations of the multipliers `axis` (k,): the frames of a figure that moves over b.
    """
    m = len(problem.b)
    axis, thresholds = axis.double(), thresholds.double()
    points = torch.cartesian_prod(*[axis] * m).reshape(-1, m)
    free = replace(problem, b=torch.zeros_like(problem.b))  # g + b lam, for any b
    height = torch.stack([free.dual(point) for point in points])
    g = (height - thresholds @ points.T).reshape(-1, *[len(axis)] * m)
    rows = [_optimum(replace(problem, b=b)) for b in thresholds]
    lam, value, losses = (torch.stack(column) for column in zip(*rows, strict=True))
    return DualFrames(g, lam, value, losses)


def _optimum(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    try:
        found = solve(problem)
    except Infeasible:
        grown = torch.full_like(problem.b, torch.inf)
        return grown, grown[0], torch.cat([grown, grown[:1]]) * torch.nan
    return found.lam, problem.b.new_tensor(found.primal), found.losses
