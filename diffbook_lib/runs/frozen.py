"""What a task takes from another run: its network and its samples, kept in the checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffbook_lib.errors import Refused
from diffbook_lib.runs import folder, presets
from diffbook_lib.runs.restoring import restore
from diffbook_lib.runs.sampling import drawn


class Frozen(nn.Module):
    """The network of a finished run, with the average of its weights that samples, and the first
    `examples` of its samples, in the buffer `examples`.

    run: its folder; a relative one lies in the repository. net: a network built as that run's
    was. As a part of a task's state it stands in every checkpoint, and a run that has one is
    continued without the other's folder; a run that has none is refused without it, before
    anything is written. Raises Refused where the other run's network is another one, or it has
    fewer samples, and what `restore` and `drawn` raise.
    """

    examples: Tensor

    def __init__(
        self,
        run: str,
        net: nn.Module,
        shape: Sequence[int] = (),
        examples: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.run = presets.root() / run
        self.net = net.requires_grad_(False).eval()
        self.register_buffer("examples", torch.zeros(examples, *shape, dtype=dtype))
        self.known = (self.run / "spec.json").exists()
        if self.known:
            self._take_up(self.run)

    def _take_up(self, run: Path) -> None:
        spec = folder.read_spec(run)
        try:
            restore(self.net, run, spec)
        except RuntimeError as error:
            raise Refused(
                f"the network of {run} is not built as this run's: {error}"
            ) from None
        if len(self.examples):
            found = drawn(run).x
            if found.shape[1:] != self.examples.shape[1:] or len(found) < len(
                self.examples
            ):
                raise Refused(
                    f"{run} has samples {tuple(found.shape)}, but {tuple(self.examples.shape)} "
                    "are wanted; ask for fewer, or draw more there"
                )
            self.examples.copy_(found[: len(self.examples)])

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        """Refused where nothing is known to be kept."""
        if not self.known:
            raise Refused(
                f"this run starts from what was trained in {self.run}, which is no run folder. "
                "'python -m diffbook_lib run METHOD PRESET' makes the folder "
                "runs/METHOD-PRESET: run that first, or name another folder"
            )
        return super().state_dict(*arguments, **named)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """What was kept; known from now on."""
        found = super().load_state_dict(state_dict, strict, assign)
        self.known = True
        return found

    def forward(self, *arguments: Any) -> Tensor:
        out: Tensor = self.net(*arguments)
        return out
