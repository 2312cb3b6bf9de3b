"""What the training loop costs over a bare PyTorch loop, and what importing the library costs.

Both loops train the digits U-Net (16 channels) with the same AdamW, clipping and averaging on the
CPU; the ratio of their times is the median over interleaved repeats.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from diffbook_lib import checkpoint, presets, rng, train
from diffbook_lib.data import load
from diffbook_lib.ema import EMA
from diffbook_lib.nets.unet import UNet

STEPS, REPEATS = 50, 9
SPEC = presets.RunSpec(
    method="benchmark",
    preset="train-loop",
    dataset="digits",
    steps=STEPS,
    batch=64,
    lr=1e-3,
    log_every=20,
    checkpoint_every=STEPS,
)

IMPORTS = (
    "import torch",
    "import torch; from diffbook_lib import cld, data, diffusion, exact, samplers, train",
)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(inputs=1, outputs=1, size=8)


def loss(net, batch, generator):
    noise = rng.normal(batch.x.shape, generator)
    sigma = rng.uniform((len(batch.x),), generator)
    return (
        (net(batch.x + sigma[:, None, None, None] * noise, sigma) - batch.x)
        .square()
        .mean((1, 2, 3))
    )


def bare(dataset) -> None:
    """The shortest loop that trains the same network the same way."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=SPEC.lr, weight_decay=0.0, fused=True)
    average = EMA(net, SPEC.ema, SPEC.ema_value)
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
    for _ in train.train(network(), loss, dataset, SPEC):
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


def main() -> None:
    dataset = load("digits")
    loops = {"bare": bare, "diffbook_lib": ours}
    for loop in loops.values():
        loop(dataset)
    rounds = [
        {name: seconds(loop, dataset) for name, loop in loops.items()} for _ in range(REPEATS)
    ]
    print(f"{'loop':14}  ms a step  over bare (median of {REPEATS} rounds of {STEPS} steps)")
    for name in loops:
        step = statistics.median(times[name] for times in rounds) / STEPS * 1000
        ratio = statistics.median(times[name] / times["bare"] for times in rounds)
        print(f"{name:14}  {step:9.2f}  {ratio:.3f}" + ("" if name == "bare" else "  target 1.05"))

    taken, megabytes = checkpoint_cost()
    print(f"a checkpoint of {megabytes:.1f} MB: {taken * 1000:.0f} ms")

    imports = [[import_seconds(line) for line in IMPORTS] for _ in range(REPEATS)]
    torch_only, library = map(statistics.median, zip(*imports, strict=True))
    print(f"\nimport torch {torch_only:.2f} s; with what a chapter imports {library:.2f} s")
    print(f"difference {library - torch_only:+.2f} s, target +0.30 s")


if __name__ == "__main__":
    main()
