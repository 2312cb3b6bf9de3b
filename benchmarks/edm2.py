"""What a training step of EDM2's network costs, beside a straightforward implementation.

Both are timed in turn in one run, so that a busy machine slows both alike, in processor time, so
that waiting for the processor does not count; a ratio is the median over the rounds. A missed
target ends the script with status 1. Then what averages cost: a post-hoc solve and the memory of
two. On a GPU also the compiled network in bf16 and the share of
the processor's speed that it reaches.
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diffbook_lib import ema
from diffbook_lib.nets.edm2 import EDM2UNet, Parts, Projected, parts_of, project

TARGET = 1.25  # times as fast as the straightforward implementation
SCALED_DOWN = {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16,)}


# The straightforward implementation: weights are normalised and projected in every forward pass;
# what is scaled, summed or joined is so in passes of its own.


def normalize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


class SeparatePasses(Projected):
    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight, dims))
        weight = normalize(self.weight, dims) / math.sqrt(self.weight[0].numel())
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=self.padding)


class Straightforward(SeparatePasses):
    """With images in torch's usual order in memory, which ours changes once at the input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    n_a, n_b = a.shape[1], b.shape[1]
    c = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([c * (1 - t) / math.sqrt(n_a) * a, c * t / math.sqrt(n_b) * b], dim=1)


STRAIGHTFORWARD = replace(
    parts_of("G", "official"),
    layer=Straightforward,
    activation=lambda x: F.silu(x) / 0.596,
    residual_sum=partial(mp_sum, t=0.3),
    attention_sum=partial(mp_sum, t=0.3),
    label_sum=partial(mp_sum, t=0.5),
    cat=mp_cat,
    pixel_norm=lambda x, dim: normalize(x, (dim,)),
)
OFFICIAL = parts_of("G", "official")
COMPARED = {
    "straightforward": STRAIGHTFORWARD,
    "the same, channels last": replace(STRAIGHTFORWARD, layer=SeparatePasses),
    "ours": OFFICIAL,
}


def network(parts: Parts) -> EDM2UNet:
    """The scaled-down network, with all gains away from zero."""
    torch.manual_seed(0)
    net = EDM2UNet(3, 3, 32, parts=parts, **SCALED_DOWN)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            nn.init.constant_(parameter, 0.5)
    return net


def step(net: nn.Module, x: Tensor, noise: Tensor) -> None:
    """Forward, backward, projection; without the optimiser, the same for all."""
    net.zero_grad()
    net(x, noise).square().mean().backward()
    project(net)


def rounds(repeats: int, configurations: dict[str, Parts]) -> dict[str, list[float]]:
    """Seconds of processor time of a step of each, round by round, after one to warm up."""
    torch.manual_seed(0)
    x, noise = torch.randn(16, 3, 32, 32), torch.randn(16)
    nets = {name: network(parts) for name, parts in configurations.items()}
    found: dict[str, list[float]] = {name: [] for name in nets}
    for i in range(1 + repeats):
        for name, net in nets.items():
            start = process_time()
            step(net, x, noise)
            if i:
                found[name].append(process_time() - start)
    return found


def same_numbers() -> float:
    """Largest difference between the two implementations, over the largest number."""
    x, noise = torch.randn(2, 3, 32, 32), torch.randn(2)
    with torch.no_grad():
        ours, theirs = (network(p).eval()(x, noise) for p in (OFFICIAL, STRAIGHTFORWARD))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare(repeats: int) -> bool:
    """Whether the target is met."""
    print(f"scaled-down official G, batch 16; largest difference {same_numbers():.0e}")
    found = rounds(repeats, COMPARED)
    for name, seconds in found.items():
        pairs = zip(found["straightforward"], seconds, strict=True)
        ratio = median(theirs / own for theirs, own in pairs)
        print(f"  {name:26}{median(seconds):8.3f} s{ratio:8.2f} times as fast")
    missed = ratio < TARGET
    print(f"  target {TARGET}{': missed' if missed else ''}")
    return not missed


def ladder(repeats: int) -> None:
    """Seconds of a step in every configuration."""
    print("every configuration, batch 16")
    letters = {f"{letter} seed": parts_of(letter, "seed") for letter in "CDEFG"}
    for name, seconds in rounds(repeats, {**letters, "G official": OFFICIAL}).items():
        print(f"  {name:26}{median(seconds):8.3f} s")


def averages(repeats: int, count: int = 256) -> None:
    """A post-hoc solve with this many snapshots of two widths, and the memory that tracking two
    widths takes beside the weights."""
    ends = torch.linspace(1 / count, 1, count, dtype=torch.float64).repeat(2)
    widths = torch.tensor([0.05, 0.1], dtype=torch.float64).repeat_interleave(count)
    print(f"a post-hoc solve, {count} snapshots of each of two widths")
    for name, solve in {
        "coefficients alone": ema.least_squares,
        "with condition and error": ema.coefficients,
    }.items():
        spent = []
        for _ in range(repeats):
            start = process_time()
            solve(ends, widths, 1.0, 0.15)
            spent.append(process_time() - start)
        print(f"  {name:26}{1000 * median(spent):8.0f} ms")
    net = network(OFFICIAL)
    tracked = [ema.EMA(net, ema.Power(sigma_rel), 16) for sigma_rel in (0.05, 0.1)]
    of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    weights = of(net.parameters())
    copies = sum(of(average.state_dict().values()) for average in tracked)
    print(
        f"  two tracked widths: {copies / 2**20:.1f} MiB, {copies / weights:.2f} times the weights"
    )


def seconds_on_gpu(work: Callable[[], None], repeats: int) -> float:
    """Of one call, after a few to warm up."""
    for _ in range(3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def on_gpu(repeats: int, batch: int = 512) -> None:
    """Images/s of the compiled CIFAR-sized G in bf16, and its operations over those of a large
    matrix product in the same time."""
    sizes = {"channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)}
    with torch.device("cuda"):
        net = EDM2UNet(3, 3, 32, parts=parts_of("G", "seed"), **sizes)
        x, noise = torch.randn(batch, 3, 32, 32), torch.randn(batch)
        square = torch.randn(8192, 8192, dtype=torch.bfloat16)

    def training_step(net: Callable[..., Tensor]) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = net(x, noise).float().square().mean()
        loss.backward()

    with FlopCounterMode(display=False) as counted:
        training_step(net)
    seconds = seconds_on_gpu(partial(training_step, torch.compile(net)), repeats)
    peak = 2 * 8192**3 / seconds_on_gpu(lambda: square @ square, repeats)
    share = counted.get_total_flops() / seconds / peak
    print(f"GPU, bf16, compiled: {batch / seconds:.0f} images/s, utilisation {share:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    met = compare(repeats)
    ladder(repeats)
    averages(repeats)
    if torch.cuda.is_available():
        on_gpu(repeats)
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
