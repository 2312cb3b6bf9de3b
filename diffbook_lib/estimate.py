"""What a run will cost, without starting it: exact parameter and FLOP counts, memory, GPU hours.

The network is built on torch's meta device, which knows shapes and holds no numbers, by the cells
of the run notebook tagged "network"; they define `net` and `example`, the inputs of one sample.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffbook_lib import presets
from diffbook_lib.presets import PresetError, RunSpec

# Dense peak in TFLOP/s from NVIDIA's data sheets: bf16 on tensor cores, fp32 without them.
PEAK = {
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "H100": {"bf16": 989.0, "fp32": 67.0},
    "H200": {"bf16": 989.0, "fp32": 67.0},
    "RTX 4090": {"bf16": 165.0, "fp32": 82.6},
}
UTILISATION = 0.3


@dataclass(frozen=True)
class Estimate:
    """The cost of a run, in one process."""

    method: str
    preset: str
    parameters: int  # trainable, exact
    forward_flops: int  # of one sample: matrix products, convolutions and attention
    training_flops: int  # of one sample: three forward passes
    samples: int  # seen in training, steps times batch
    state_bytes: int  # weights, gradients, two Adam moments, average: all float32
    activation_bytes: int  # kept for the backward pass, float32
    checkpoint_bytes: int  # one file: weights, two moments, average
    gpu: str
    precision: str
    peak_tflops: float
    utilisation: float
    gpu_hours: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        def size(amount: float, unit: str) -> str:
            for prefix in ("", "k", "M", "G", "T", "P", "E"):
                if amount < 1000 or prefix == "E":
                    break
                amount /= 1000
            return f"{amount:.3g} {prefix}{unit}"

        lines = {
            "run": f"{self.method} {self.preset}",
            "parameters": f"{self.parameters:,} trainable",
            "a sample": f"{size(self.forward_flops, 'FLOP')} forward, "
            f"{size(self.training_flops, 'FLOP')} training (3 forward passes)",
            "training": f"{self.samples:,} samples, "
            f"{size(self.samples * self.training_flops, 'FLOP')}",
            "memory": f"{size(self.state_bytes, 'B')} weights, gradients, moments and average + "
            f"{size(self.activation_bytes, 'B')} activations (float32)",
            "disk": f"{size(self.checkpoint_bytes, 'B')} a checkpoint, two are kept",
            "time": f"{self.gpu_hours:.3g} hours of one {self.gpu} in {self.precision} at "
            f"{self.utilisation:.0%} of {self.peak_tflops:g} TFLOP/s; small networks reach less",
        }
        return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def estimate(
    method: str,
    preset: str,
    overrides: dict[str, Any] | None = None,
    gpu: str = "H100",
    utilisation: float = UTILISATION,
) -> Estimate:
    """The cost of a preset on a GPU that reaches the share `utilisation` of its peak.

    Raises PresetError for what cannot be run and for an unknown GPU.
    """
    if gpu not in PEAK:
        raise PresetError(f"unknown GPU {gpu!r}: {', '.join(PEAK)}{presets.nearest(gpu, PEAK)}")
    if not 0 < utilisation <= 1:
        raise PresetError(f"utilisation is {utilisation}; it must lie above 0 and at most at 1")
    spec = presets.resolve(method, preset, overrides)
    net, example = network(spec)
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    every = sum(t.numel() for t in (*net.parameters(), *net.buffers()))
    forward = forward_flops(net, example)
    samples = spec.steps * spec.batch
    peak = PEAK[gpu][spec.precision]
    return Estimate(
        method=method,
        preset=preset,
        parameters=trainable,
        forward_flops=forward,
        training_flops=3 * forward,
        samples=samples,
        state_bytes=4 * (2 * every + 3 * trainable),
        activation_bytes=activation_bytes(net, example) * (spec.batch // spec.accumulate),
        checkpoint_bytes=4 * (2 * every + 2 * trainable),
        gpu=gpu,
        precision=spec.precision,
        peak_tflops=peak,
        utilisation=utilisation,
        gpu_hours=samples * 3 * forward / (peak * 1e12 * utilisation) / 3600,
    )


def network(spec: RunSpec) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network of a run and the inputs of one sample, on the meta device."""
    with torch.device("meta"):
        made = presets.build(spec, "network")
    try:
        return made["net"], made["example"]
    except KeyError as error:
        raise PresetError(
            f"the network cell of {spec.method}.ipynb does not define {error}"
        ) from None


def forward_flops(net: Callable, example: tuple[Any, ...]) -> int:
    """FLOPs of one call, a multiplication and an addition counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*example)
    return counter.get_total_flops()


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
