"""The processes of one run and the precision of its network."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from diffbook_lib.errors import Refused

HINT = "python -m diffbook_lib run METHOD PRESET --processes"


class Workers:
    """The processes that train together: their number, this one's index, its device.

    Started by torchrun on one machine, they meet through a file in the run folder and talk over
    the loopback interface, so nothing listens to the network; on several machines they meet as
    torchrun says.
    """

    def __init__(self, folder: Path | None = None) -> None:
        from accelerate import PartialState

        count = int(os.environ.get("WORLD_SIZE", "1"))
        alone = os.environ.get("LOCAL_WORLD_SIZE") == str(count)
        if count > 1 and folder and alone and not distributed.is_initialized():
            _meet(folder, count)
        state = PartialState(cpu=not torch.cuda.is_available())
        self.count, self.index, self.device = (
            state.num_processes,
            state.process_index,
            state.device,
        )
        self.is_first = self.index == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their means over the processes, in one collective."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def check(self, batch: int, accumulate: int) -> None:
        """Raise Refused unless as many processes take part as were asked for, and the batch
        splits among them."""
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count != asked:
            raise Refused(
                f"{asked} processes were asked for but {self.count} take part; start them with "
                f"{HINT} {asked}"
            )
        shares = self.count * accumulate
        if batch % shares:
            raise Refused(
                f"batch is {batch}; it must be a multiple of {shares}, {self.count} processes "
                f"times accumulate = {accumulate}"
            )


def device() -> torch.device:
    """Where this process computes."""
    found: torch.device = Workers().device
    return found


def leave() -> None:
    """End the talk with the other processes, if there are any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _meet(folder: Path, count: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    identity = (
        os.environ.get(f"TORCHELASTIC_{n}", "0") for n in ("RUN_ID", "RESTART_COUNT")
    )
    file = folder.resolve() / ".rendezvous" / f"workers-{'-'.join(identity)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{file}",
        rank=int(os.environ["RANK"]),
        world_size=count,
    )


def set_precision(net: nn.Module, precision: str) -> nn.Module:
    """The network itself, from now on computed in bfloat16 where that is safe (autocast), with
    float32 results, or in float32; in training and in sampling alike."""
    vars(net).pop("forward", None)
    if precision == "bf16":
        plain = net.forward

        def forward(x: Tensor, *arguments: Any, **named: Any) -> Any:
            from accelerate.utils import convert_to_fp32

            with torch.autocast(x.device.type, torch.bfloat16):
                return convert_to_fp32(plain(x, *arguments, **named))

        net.forward = forward
    return net
