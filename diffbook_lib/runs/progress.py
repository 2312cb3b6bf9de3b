"""What a run says while it trains: its events, metrics.jsonl, TensorBoard, a progress bar."""

import json
import os
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from diffbook_lib import files
from diffbook_lib.bars import progress_bar
from diffbook_lib.runs.checkpoint import Checkpoint, CheckpointError, PartsDiffer
from diffbook_lib.runs.origin import Start
from diffbook_lib.specs import RunSpec


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Loss, gradient norm (before clipping) and measures are means over the
    steps since the event before; seconds is the time spent training, over all `starts`."""

    step: int
    samples: int
    loss: float
    lr: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()
    resumed: bool = False  # restored from a checkpoint rather than just trained

    def numbers(self) -> dict[str, Any]:
        """What is logged of it."""
        kept = asdict(self)
        del kept["resumed"], kept["starts"]
        return kept

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON knows it."""
        return self.numbers() | {
            "starts": [start.model_dump() for start in self.starts]
        }

    @classmethod
    def restored(cls, found: Checkpoint) -> "Progress | None":
        """Where the run stood at a checkpoint, None before its first step.

        Raises PartsDiffer for a checkpoint that says other things about it.
        """
        if (saved := found.info["progress"]) is None:
            return None
        known = {entry.name for entry in fields(cls)} - {"resumed"}
        lacking = sorted(known - {"starts"} - set(saved))
        if lacking or set(saved) - known:
            raise PartsDiffer(
                f"{found.path} is of another version: its progress lacks "
                f"{', '.join(lacking) or 'nothing'} and has besides "
                f"{', '.join(sorted(set(saved) - known)) or 'nothing'}; continue it with the code "
                "that wrote it, or start another run"
            )
        starts = tuple(Start(**start) for start in saved.get("starts", ()))
        return cls(**{**saved, "starts": starts, "resumed": True})


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
        numbers = progress.numbers()
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")
            shown = ("loss", "lr", "grad_norm", "samples_per_second")
            for name, number in {n: numbers[n] for n in shown}.items():
                self.board.add_scalar(name, number, progress.step)
            for name, number in progress.measures.items():
                self.board.add_scalar(f"measures/{name}", number, progress.step)
        except OSError as error:
            raise CheckpointError(
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
            files.atomic_write(self.path, b"".join(line + b"\n" for line in kept))


class Ticking(Protocol):
    """A training: gives its events, and calls `tick` with the number of each step."""

    tick: Callable[[int], None]

    def __iter__(self) -> Generator[Progress, None, None]: ...


def watch(trainer: Ticking, spec: RunSpec) -> Progress:
    """Drive a training with a progress bar (one bar for all processes), which moves with every
    step; returns the last event."""
    silent = {"disable": True} if os.environ.get("RANK", "0") != "0" else {}
    with (
        progress_bar()(total=spec.steps, unit="step", mininterval=1, **silent) as bar,
        closing(iter(trainer)) as events,
    ):
        trainer.tick = lambda step: bar.update(step - bar.n)
        for last in events:
            if last.resumed:
                bar.initial = bar.n = bar.last_print_n = last.step
            shown = {"loss": last.loss, **last.measures}
            said = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            bar.set_postfix_str(
                f"{said}, {last.samples_per_second:,.0f} samples/s", refresh=False
            )
            if last.step == spec.steps:
                bar.set_description("complete", refresh=False)
            bar.update(last.step - bar.n)
    return last
