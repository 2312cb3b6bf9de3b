"""What a run will cost, without starting it: exact parameter and FLOP counts, memory, GPU hours.

The network is built on torch's meta device, which knows shapes and holds no numbers, by the cells
of the run notebook tagged "network"; they define `net` and `example`, the inputs of one sample.
All members of a sweep are counted, each with its own network.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffbook_lib import data
from diffbook_lib.errors import DiffbookError, Refused
from diffbook_lib.metrics import grading_flops
from diffbook_lib.runs import cells, presets
from diffbook_lib.specs import RunSpec, SpecError, nearest

# Dense peak in TFLOP/s from NVIDIA's data sheets: bf16 on tensor cores, fp32 without them.
PEAK = {
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "H100": {"bf16": 989.0, "fp32": 67.0},
    "H200": {"bf16": 989.0, "fp32": 67.0},
    "RTX 4090": {"bf16": 165.0, "fp32": 82.6},
}
UTILISATION = 0.3
BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Estimate:
    """The cost of a run, in one process. Where members differ, sizes are those of the largest."""

    method: str
    preset: str
    members: int
    parameters: int  # trainable, exact
    forward_flops: int  # of one example: matrix products, convolutions and attention
    samples: int  # seen in training by all members: steps times batch
    training_flops: int  # of all members: three forward passes an example
    sampling_flops: (
        int  # of all members: the network calls of every image of the table
    )
    grading_flops: (
        int  # the features of every image of the table; those of real ones are kept
    )
    state_bytes: int  # weights, gradients, two Adam moments, averages: all float32
    activation_bytes: int  # kept for the backward pass, float32
    checkpoint_bytes: int  # one file: weights, two moments, averages
    snapshot_bytes: int  # all snapshots of the averages, of all members
    snapshot_precision: str
    gpu: str
    precision: str
    peak_tflops: float
    utilisation: float
    gpu_hours: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = {
            "run": f"{self.method} {self.preset}"
            + (f", {self.members} members" if self.members > 1 else ""),
            "parameters": f"{self.parameters:,} trainable",
            "an example": f"{_size(self.forward_flops, 'FLOP')} forward, three times that in "
            "training",
            "training": f"{self.samples:,} examples, {_size(self.training_flops, 'FLOP')}",
            "sampling": _size(self.sampling_flops, "FLOP"),
            "grading": _size(self.grading_flops, "FLOP"),
            "memory": f"{_size(self.state_bytes, 'B')} weights, gradients, moments and averages + "
            f"{_size(self.activation_bytes, 'B')} activations (float32)",
            "disk": f"{_size(self.checkpoint_bytes, 'B')} a checkpoint, two are kept for each "
            f"member; {_size(self.snapshot_bytes, 'B')} snapshots in {self.snapshot_precision}",
            "time": f"{self.gpu_hours:.3g} hours of one {self.gpu} in {self.precision} at "
            f"{self.utilisation:.0%} of {self.peak_tflops:g} TFLOP/s; small networks reach less",
        }
        return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def _size(amount: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if amount < 1000 or prefix == "E":
            break
        amount /= 1000
    return f"{amount:.3g} {prefix}{unit}"


def estimate(
    method: str,
    preset: str,
    changes: dict[str, Any] | None = None,
    gpu: str = "H100",
    utilisation: float = UTILISATION,
) -> Estimate:
    """The cost of a preset on a GPU that reaches the share `utilisation` of its peak.

    Raises SpecError for what cannot be run, Refused for an unknown GPU.
    """
    if gpu not in PEAK:
        raise Refused(f"unknown GPU {gpu!r}: {', '.join(PEAK)}{nearest(gpu, PEAK)}")
    if not 0 < utilisation <= 1:
        raise Refused(
            f"utilisation is {utilisation}; it must lie above 0 and at most at 1"
        )
    spec = presets.resolve(method, preset, changes)
    costs = [member_cost(spec.member(at)) for at in spec.members()]
    most = {name: max(cost[name] for cost in costs) for name in LARGEST}
    whole = {name: sum(cost[name] for cost in costs) for name in SUMMED}
    peak = PEAK[gpu][spec.precision]
    flops = whole["training_flops"] + whole["sampling_flops"] + whole["grading_flops"]
    return Estimate(
        method=method,
        preset=preset,
        members=len(costs),
        **most,
        **whole,
        snapshot_precision=spec.snapshot_precision,
        gpu=gpu,
        precision=spec.precision,
        peak_tflops=peak,
        utilisation=utilisation,
        gpu_hours=flops / (peak * 1e12 * utilisation) / 3600,
    )


LARGEST = (
    "parameters",
    "forward_flops",
    "state_bytes",
    "activation_bytes",
    "checkpoint_bytes",
)
SUMMED = (
    "samples",
    "training_flops",
    "sampling_flops",
    "grading_flops",
    "snapshot_bytes",
)


def member_cost(spec: RunSpec) -> dict[str, int]:
    """The figures of an Estimate for one member."""
    net, example = network(spec)
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    every = sum(t.numel() for t in (*net.parameters(), *net.buffers()))
    forward, samples = forward_flops(net, example), spec.steps * spec.batch
    averages, images = len(spec.ema) * every, len(spec.cells()) * spec.samples
    kept = -(-spec.steps // spec.snapshot_every) if spec.snapshot_every else 0
    return {
        "parameters": trainable,
        "forward_flops": forward,
        "samples": samples,
        "training_flops": 3 * forward * samples,
        "sampling_flops": spec.calls() * forward * spec.samples,
        "grading_flops": int(
            grading_flops(spec.dataset, data.check(spec).shape, images)
        ),
        "state_bytes": 4 * (every + averages + 3 * trainable),
        "activation_bytes": activation_bytes(net, example)
        * (spec.batch // spec.accumulate),
        "checkpoint_bytes": 4 * (every + averages + 2 * trainable),
        "snapshot_bytes": BYTES[spec.snapshot_precision] * kept * averages,
    }


def network(spec: RunSpec) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network of a run and the inputs of one sample, on the meta device.

    Raises SpecError for a network that does not fit the data.
    """
    try:
        with torch.device("meta"):
            made = cells.execute(spec, "network")
    except DiffbookError:
        raise
    except ValueError as error:
        raise SpecError(f"network: {error}") from None
    net, example = cells.defined(made, "net", "example")
    return net, example


def forward_flops(net: Callable[..., Tensor], example: tuple[Any, ...]) -> int:
    """FLOPs of one call, a multiplication and an addition counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*example)
    return int(counter.get_total_flops())


def activation_bytes(net: nn.Module, example: tuple[Any, ...]) -> int:
    """Bytes that one call keeps for its backward pass, each piece of memory counted once."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(*example)
    del output
    return sum(storage.nbytes() for storage in kept.values())
