"""What dual training with three constraints costs beside plain training on as many images a step.

Both train the same network by the same loop and are timed in turn, in processor time, so that a
busy machine slows both alike and waiting for the processor does not count; the overhead is the
median over the rounds. A missed target ends the script with status 1. For comparison also the
usual way, one forward pass for each loss, and dual training with a reference, in nats.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from diffbook_lib import constrained, data, diffusion, nets, rng, runs
from diffbook_lib.data import Batch
from diffbook_lib.runs import training
from diffbook_lib.specs.constrained import Spec

TARGET = 1.05  # seconds of a step over those of plain training
STEPS = 10  # of a round
SETTINGS = {
    "dataset": "digits",
    "minority": [4, 5, 7],
    "steps": 1_000_000,
    "log_every": STEPS,
    "checkpoint_every": 1_000_000,
    "batch": 64,
    "constraint_batch": 8,
    "lr": 1e-3,
    "preset": "benchmark",
}
SPEC = Spec(method="constrained", **SETTINGS)
NAMES = ("class 4", "class 5", "class 7")
LEVELS = diffusion.UniformLogSNR(0.02, 20.0, stratified=True)
PROBLEM = constrained.NoiseLoss(LEVELS, diffusion.EDM(0.85).denoiser)


def network() -> nn.Module:
    with rng.seeded(0, "network"):
        return nets.make("unet", 1, 1, SPEC, (8, 8))


def plain(dataset: data.ArrayDataset) -> runs.Task:
    """The objective alone."""

    def loss(net: nn.Module, batch: Batch, source: rng.Source) -> Tensor:
        return constrained.unconstrained(PROBLEM, net, batch, source)

    return runs.Task(network(), loss, dataset)


def dual(dataset: data.ArrayDataset, in_nats: bool = False) -> runs.Task:
    """Three constraints, all losses in one forward pass."""
    timetable = constrained.Timetable(SPEC.steps, primal_steps=2, memory=0.9)
    multipliers = constrained.Dual(NAMES, constrained.Ascent(0.05, alpha=0.5), timetable)
    other = network().requires_grad_(False)
    reference = (lambda draw, label: PROBLEM.error(other, draw)) if in_nats else None
    lagrangian = constrained.Lagrangian(PROBLEM, multipliers, (0.0,) * 3, reference)
    state = {"dual": multipliers}
    return runs.Task(network(), lagrangian.loss, groups(dataset), state)


def separate(dataset: data.ArrayDataset) -> runs.Task:
    """The same with a forward pass for the objective and for each constraint."""
    task = dual(dataset)

    def loss(net: nn.Module, batch: Batch, source: rng.Source) -> tuple[Tensor, dict]:
        draw = PROBLEM.draw(batch.x, source)
        errors = torch.zeros(len(batch.x))
        for group in range(4):
            rows = (batch.group == group).nonzero().flatten()
            part = diffusion.Draw(*(tensor[rows] for tensor in draw))
            errors = errors.index_copy(0, rows, PROBLEM.error(net, part))
        multipliers = task.state["dual"]
        weights = torch.cat([torch.ones(1), multipliers.used])
        parts = batch.by_group(errors)
        gaps = zip(NAMES, parts[1:].detach(), strict=True)
        return weights @ parts, {f"violation/{name}": gap for name, gap in gaps}

    return runs.Task(task.net, loss, task.dataset, task.state)


def groups(dataset: data.ArrayDataset) -> data.Grouped:
    rows = SPEC.constraint_batch
    parts = {name: (data.of_classes(dataset, [int(name[-1])]), rows) for name in NAMES}
    return data.Grouped({"objective": (dataset, SPEC.batch - 3 * rows), **parts})


def steps(task: runs.Task) -> Iterator[float]:
    """Seconds of processor time of a step, round after round."""
    events = training.events(task, SPEC)
    while True:
        start = process_time()
        next(events)
        yield (process_time() - start) / STEPS


def compare(repeats: int) -> bool:
    """Whether the target is met."""
    dataset = data.load("digits")
    ways: dict[str, Callable[[], runs.Task]] = {
        "plain": lambda: plain(dataset),
        "dual, 3 constraints": lambda: dual(dataset),
        "the same, 4 forward passes": lambda: separate(dataset),
        "dual in nats, with reference": lambda: dual(dataset, in_nats=True),
    }
    timers = {name: steps(make()) for name, make in ways.items()}
    rounds = list(islice(zip(*timers.values(), strict=True), 1 + repeats))[1:]
    print(f"digits, U-Net of {SPEC.channels} channels, {SPEC.batch} images a step")
    found = {}
    for i, name in enumerate(timers):
        found[name] = median(row[i] / row[0] for row in rounds)
        seconds = median(row[i] for row in rounds)
        print(f"  {name:30}{1000 * seconds:8.1f} ms{found[name]:8.3f} times plain")
    missed = found["dual, 3 constraints"] > TARGET
    print(f"  target {TARGET}{': missed' if missed else ''}")
    return not missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    raise SystemExit(not compare(repeats))


if __name__ == "__main__":
    main()
