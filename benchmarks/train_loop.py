"""What the training loop costs over a bare PyTorch loop, and what importing the library costs.

All loops train the digits U-Net (16 channels) with the same AdamW, clipping and averaging on the
CPU, one after the other; a ratio is the median over these rounds. Ends with 1 if one is missed.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from diffbook_lib import data, ema, rng
from diffbook_lib.nets.unet import UNet
from diffbook_lib.runs import checkpoint, training
from diffbook_lib.runs.task import Task
from diffbook_lib.specs import RunSpec

STEPS, REPEATS = 50, 9
SPEC = RunSpec(
    method="benchmark",
    preset="train-loop",
    dataset="digits",
    steps=STEPS,
    batch=64,
    lr=1e-3,
    log_every=20,
    checkpoint_every=STEPS,
)
TARGETS = {"diffbook_lib": 1.05, "with measures": 1.08}
IMPORTS = (
    "import torch",
    "import torch; from diffbook_lib import cld, data, diffusion, exact, runs, samplers",
)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(inputs=1, outputs=1, size=8)


def loss(net, batch, source):
    noise = rng.normal(batch.x.shape, source)
    sigma = rng.uniform((len(batch.x),), source)
    noisy = batch.x + sigma[:, None, None, None] * noise
    return (net(noisy, sigma) - batch.x).square().mean((1, 2, 3))


class Dual(nn.Module):
    """A multiplier and the average of what it constrains, moved after every step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def after_step(self, step, measures):
        self.value.add_(measures["loss"] - 0.5, alpha=0.1).clamp_(min=0)
        self.average.lerp_(measures["loss"], 0.1)


def bare(dataset) -> None:
    """The shortest loop that trains the same network the same way."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=SPEC.lr, weight_decay=0.0, fused=True)
    average = ema.EMA(net, ema.profile(SPEC.ema[0]), SPEC.batch)
    generator = torch.Generator().manual_seed(0)
    x = dataset[:].x
    for _ in range(STEPS):
        rows = torch.randint(len(x), (SPEC.batch,), generator=generator)
        noise = torch.randn(SPEC.batch, 1, 8, 8, generator=generator)
        sigma = torch.rand(SPEC.batch, generator=generator)
        clean = x[rows]
        noisy = clean + sigma[:, None, None, None] * noise
        value = (net(noisy, sigma) - clean).square().mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), SPEC.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update(net)


def ours(dataset) -> None:
    for _ in training.events(Task(network(), loss, dataset), SPEC):
        pass


def measured(dataset) -> None:
    """With two measures and a state that follows one of them."""
    dual = Dual()

    def constrained(net, batch, source):
        losses = loss(net, batch, source)
        return losses * (1 + dual.value), {"loss": losses, "root": losses.detach().sqrt()}

    for _ in training.events(Task(network(), constrained, dataset, {"dual": dual}), SPEC):
        pass


def checkpoint_cost() -> tuple[float, float]:
    """Seconds and megabytes of one checkpoint of this network: weights, average, two moments."""
    weights = network().state_dict()
    tensors = {f"{part}/{name}": w for part in "abcd" for name, w in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        taken = [seconds(checkpoint.save, Path(folder), n, tensors, {}) for n in range(REPEATS)]
        size = checkpoint.file(Path(folder), REPEATS - 1).stat().st_size
    return statistics.median(taken), size / 1e6


def seconds(function, *arguments) -> float:
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def import_seconds(line: str) -> float:
    command = f"from time import perf_counter as t; s = t(); {line}; print(t() - s)"
    output = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True)
    return float(output.stdout)


def main() -> int:
    dataset = data.load("digits")
    loops = {"bare": bare, "diffbook_lib": ours, "with measures": measured}
    for loop in loops.values():
        loop(dataset)
    rounds = [
        {name: seconds(loop, dataset) for name, loop in loops.items()} for _ in range(REPEATS)
    ]
    print(f"{'loop':14}  ms a step  over bare (median of {REPEATS} rounds of {STEPS} steps)")
    missed = 0
    for name in loops:
        step = statistics.median(times[name] for times in rounds) / STEPS * 1000
        ratio = statistics.median(times[name] / times["bare"] for times in rounds)
        target = TARGETS.get(name)
        missed += bool(target and ratio > target)
        print(f"{name:14}  {step:9.2f}  {ratio:.3f}" + (f"  target {target}" if target else ""))

    taken, megabytes = checkpoint_cost()
    print(f"a checkpoint of {megabytes:.1f} MB: {taken * 1000:.0f} ms")

    imports = [[import_seconds(line) for line in IMPORTS] for _ in range(REPEATS)]
    torch_only, library = map(statistics.median, zip(*imports, strict=True))
    print(f"\nimport torch {torch_only:.2f} s; with what a chapter imports {library:.2f} s")
    print(f"difference {library - torch_only:+.2f} s, target +0.30 s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
