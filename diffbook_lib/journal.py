"""What a run says while it trains: its events, metrics.jsonl, TensorBoard, a progress bar."""

import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbook_lib import checkpoint

if TYPE_CHECKING:
    from diffbook_lib.presets import RunSpec


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Loss and gradient norm (before clipping) are means over the steps since
    the event before; seconds is the time spent training, over all starts of the run."""

    step: int
    samples: int
    loss: float
    lr: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    resumed: bool = False  # restored from a checkpoint rather than just trained


class Log:
    """metrics.jsonl in a run folder, one JSON object a line, and the same for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._forget_after(step)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self.board.close()

    def __call__(self, progress: Progress) -> None:
        numbers = asdict(progress)
        del numbers["resumed"]
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(numbers) + "\n")
            for name in ("loss", "lr", "grad_norm", "samples_per_second"):
                self.board.add_scalar(name, numbers[name], progress.step)
        except OSError as error:
            raise checkpoint.CheckpointError(
                f"{self.path} could not be written: {error.strerror}. The checkpoints are as they "
                "were. Make room on that disk and start the same run again."
            ) from error

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be trained again, and report those that are no JSON."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        kept = []
        for number, line in enumerate(lines, 1):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                warnings.warn(
                    f"{self.path}: line {number} is damaged and dropped: {line[:60]!r}",
                    stacklevel=2,
                )
        if kept != lines:
            checkpoint.atomic_write(self.path, b"".join(line + b"\n" for line in kept))


def watch(events: Iterable[Progress], spec: "RunSpec") -> Progress:
    """Drive a training with a progress bar (one bar for all processes); returns the last event."""
    silent = {"disable": True} if os.environ.get("RANK", "0") != "0" else {}
    with progress_bar()(total=spec.steps, unit="step", mininterval=1, **silent) as bar:
        for last in events:
            if last.resumed:
                bar.initial = bar.n = bar.last_print_n = last.step
            speed = f"loss {last.loss:.4g}, {last.samples_per_second:,.0f} samples/s"
            bar.set_postfix_str(speed, refresh=False)
            if last.step == spec.steps:
                bar.set_description("complete", refresh=False)
            bar.update(last.step - bar.n)
    return last


def progress_bar() -> Any:
    """tqdm as text where papermill passes it on to a terminal and where it is disabled (its
    widget does not heed TQDM_DISABLE), else as what fits."""
    if os.environ.get("DIFFBOOK_TEXT_BAR") or os.environ.get("TQDM_DISABLE"):
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    return tqdm
