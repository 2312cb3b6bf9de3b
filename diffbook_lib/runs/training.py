"""The training loop of every method: a generator of events that drives one run to its end.

Step n needs nothing but the checkpoint of step n and (seed, n): its data, its noise and its
dropout are keyed, so a run killed at any moment ends with the bits of an undisturbed one, and
several processes, or micro-batches, train on the draws of one. Their sums differ by rounding,
which grows with the steps. Dropout masks are keyed by the share of the batch: with dropout,
another number of shares is another training, as good as the first.
"""

import math
from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from diffbook_lib import ema, rng
from diffbook_lib.errors import Failed, Refused
from diffbook_lib.runs import checkpoint, folder, origin
from diffbook_lib.runs.launch import torchrun
from diffbook_lib.runs.progress import Log, Progress, watch
from diffbook_lib.runs.task import Measures, Task, learning_rate
from diffbook_lib.runs.workers import Workers, set_precision
from diffbook_lib.specs import RunSpec

_latest: dict[
    Path, "Trainer"
] = {}  # of each run folder: an older one must not write there


class TrainingDiverged(Failed):
    """The loss or its gradient is no longer a finite number."""


def train(
    run: Path | None, spec: RunSpec, task: Task, processes: int = 1
) -> Progress:
    """Train the task of a run, or continue it, with a progress bar, to its end; without a folder
    nothing is written.

    At the end `task.net` holds the first of its averages and is in evaluation mode. Several
    processes execute the build cells of the run notebook's file; what they trained is restored
    here. Raises what `events` raises, and RunFailed if one of them fails.
    """
    if run:
        folder.lock(run)
    if run and processes > 1:
        torchrun(run, processes, "train")
    return watch(Trainer(task, spec, run), spec)


def events(
    task: Task, spec: RunSpec, run: Path | None = None
) -> Generator[Progress, None, None]:
    """The events of a training: one every `spec.log_every` steps, at every checkpoint and at the
    end; a run that is continued first yields the event of its checkpoint, a finished one only
    that. Without a folder nothing is written. Leaving the loop early saves a checkpoint.

    Raises Refused for a batch or a checkpoint that does not fit, TrainingDiverged for a loss that
    is not finite, CheckpointError for checkpoints that cannot be written or read.
    """
    return iter(Trainer(task, spec, run))


class Trainer:
    """One training; iterating over it trains. `averages` are those of the network's weights at
    any event, by name of their profile."""

    def __init__(self, task: Task, spec: RunSpec, run: Path | None = None) -> None:
        self.workers = Workers(run)
        self.workers.check(spec.batch, spec.accumulate)
        self.task, self.spec, self.run = task, spec, run
        self.device = device = self.workers.device
        self.dataset = task.dataset.to(device)
        self.net = set_precision(task.net.to(device), spec.precision)
        modules = [self.net, *(part.to(device) for part in task.state.values())]
        if isinstance(task.loss, nn.Module):
            task.loss.to(device)
        self.weights = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=spec.lr,
            betas=(spec.adam_beta1, spec.adam_beta2),
            weight_decay=spec.weight_decay,
            fused=True,
        )
        profiles = map(ema.profile, spec.ema)
        self.averages = {p.name: ema.EMA(self.net, p, spec.batch) for p in profiles}
        self.rate = task.learning_rate or (lambda step: learning_rate(step, spec))
        self.hooks = task.hooks()
        self.names: list[str] = []  # of the measures
        self.starts: tuple[origin.Start, ...] = ()  # before this one
        self.step = 0
        self.tick: Callable[[int], None] = lambda step: None  # after each step
        self.saved: Path | None = None
        if run:
            _latest[run.resolve()] = self

    def __iter__(self) -> Generator[Progress, None, None]:
        last = self._restore()
        if last:
            yield last
        elif self.saved is None:
            self._save(None)
        if self.step == self.spec.steps:
            return
        with self._open_log() as log:
            while self.step < self.spec.steps:
                self.net.train()
                started, before = perf_counter(), last.seconds if last else 0.0
                measured = [self._advance() for _ in range(self._steps_to_event())]
                last = self._progress(measured, started, before)
                log(last)
                finished = self.step == self.spec.steps
                if finished or self.step % self.spec.checkpoint_every == 0:
                    self._save(last)
                if finished:
                    self._finish()
                try:
                    yield last
                except GeneratorExit:
                    self._save(last)
                    raise

    def _steps_to_event(self) -> int:
        periods = [self.spec.log_every, self.spec.checkpoint_every]
        return min(*(n - self.step % n for n in periods), self.spec.steps - self.step)

    def _advance(self) -> Tensor:
        """One optimiser step; its loss, gradient norm and measures, left on the device."""
        rate = self.rate(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found = torch.stack(
            [self._micro_batch(m) for m in range(self.spec.accumulate)]
        ).mean(0)
        if self.workers.count > 1:
            self.workers.average([*map(_gradient, self.weights), found])
        norm = nn.utils.clip_grad_norm_(self.weights, self.spec.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        measures = dict(zip(self.names, found[1:], strict=True))
        for hook in self.hooks:
            hook(self.step, measures)
        for average in self.averages.values():
            average.update(self.net)
        every, finished = self.spec.snapshot_every, self.step == self.spec.steps
        if every and (finished or self.step % every == 0):
            self._snapshot()
        self.tick(self.step)
        return torch.cat([found[:1], norm[None], found[1:]])

    def _micro_batch(self, micro: int) -> Tensor:
        """Mean loss and measures (1 + measures,) of this process's micro-batch, whose gradients
        are added up: its rows of the global batch and of the global noise."""
        spec, step = self.spec, self.step
        share = self.workers.index * spec.accumulate + micro
        rows = spec.batch // (self.workers.count * spec.accumulate)
        start, stop = share * rows, (share + 1) * rows
        batch = self.dataset.batch(spec.seed, step, spec.batch, start, stop)
        noise = rng.generator(spec.seed, "loss", step, self.device)
        torch.manual_seed(
            rng.generator(spec.seed, f"dropout {share}", step).initial_seed()
        )
        found = self.task.loss(
            self.net, batch, rng.Share(noise, start, stop, spec.batch)
        )
        losses, measures = found if isinstance(found, tuple) else (found, {})
        self._check_shapes(losses, measures, rows)
        loss = losses.mean()
        (loss / spec.accumulate).backward()
        means = [measures[name].float().mean() for name in self.names]
        return torch.stack([loss.float(), *means]).detach()

    def _check_shapes(self, losses: Tensor, measures: Measures, rows: int) -> None:
        self.names = self.names or sorted(measures)
        if sorted(measures) != self.names:
            raise Refused(
                f"the loss measured {self.names} before and {sorted(measures)} now"
            )
        for name, values in {"the loss": losses, **measures}.items():
            if values.shape != (rows,):
                raise Refused(
                    f"{name} has shape {tuple(values.shape)} for {rows} examples; it must be "
                    f"one number an example, shape ({rows},)"
                )

    def _progress(
        self, measured: list[Tensor], started: float, before: float
    ) -> Progress:
        """Fetch what the steps measured: the only place where the host waits for the device."""
        values = torch.stack(measured).tolist()
        elapsed = perf_counter() - started
        for step, row in enumerate(values, self.step - len(values) + 1):
            if not math.isfinite(math.fsum(row)):
                raise TrainingDiverged(self._diagnosis(step, row))
        loss, norm, *rest = (
            math.fsum(column) / len(values) for column in zip(*values, strict=True)
        )
        return Progress(
            step=self.step,
            samples=self.step * self.spec.batch,
            loss=loss,
            lr=self.rate(self.step),
            grad_norm=norm,
            samples_per_second=len(values) * self.spec.batch / elapsed,
            seconds=before + elapsed,
            measures=dict(zip(self.names, rest, strict=True)),
            starts=self._starts(before + elapsed),
        )

    def _starts(self, seconds: float) -> tuple[origin.Start, ...]:
        """The starts until now, of which this one took what the others leave."""
        if self.run is None:
            return ()
        own = seconds - sum(start.seconds for start in self.starts)
        return (*self.starts, origin.start("training", self.workers.count, own))

    def _diagnosis(self, step: int, row: list[float]) -> str:
        spec = self.spec
        measures = "".join(
            f", {n} {v}" for n, v in zip(self.names, row[2:], strict=True)
        )
        return (
            f"step {step}: the loss is {row[0]} and the norm of its gradient {row[1]}{measures}. "
            f"Last good checkpoint: {self.saved or 'none'}. The same run would fail again; start "
            f"another with a smaller lr (now {spec.lr}), a longer warm-up, clip = 1.0 (now "
            f"{spec.clip}) or precision = 'fp32' (now {spec.precision!r})."
        )

    def _open_log(self) -> Any:
        if self.run is None or not self.workers.is_first:
            return nullcontext(lambda progress: None)
        return Log(self.run, self.step)

    def _parts(self) -> dict[str, Any]:
        """Everything a checkpoint holds beside the optimiser's moments, by name."""
        parts: dict[str, Any] = {"net": self.net}
        parts |= {f"ema/{name}": average for name, average in self.averages.items()}
        return parts | {
            f"state/{name}": part for name, part in self.task.state.items()
        }

    def _save(self, progress: Progress | None) -> None:
        """Write the checkpoint of this step, unless it is there already or another trainer has
        taken up this folder since."""
        samples = progress.samples if progress else 0
        if self.run is None or _latest.get(self.run.resolve()) is not self:
            return
        if self.saved and int(self.saved.stem) == samples:
            return
        self.saved = checkpoint.file(self.run / "checkpoints", samples)
        if self.workers.is_first:
            moments = [self.optimizer.state.get(p, {}) for p in self.weights]
            checkpoint.save_run(self.run, samples, self._parts(), moments, progress)

    def _restore(self) -> Progress | None:
        """Take up the newest checkpoint of the run, if there is one."""
        found = checkpoint.newest(self.run / "checkpoints") if self.run else None
        if found is None:
            return None
        moments = checkpoint.load_run(found, self._parts(), self.weights)
        self.optimizer.state.update(moments)
        self.saved, self.step = found.path, found.samples // self.spec.batch
        last = Progress.restored(found)
        if last:
            self.starts = last.starts
        if last and self.step == self.spec.steps:
            self._finish()
        return last

    def _snapshot(self) -> None:
        """Keep the averages of this step, beyond the pruning of checkpoints."""
        if self.run and self.workers.is_first:
            samples = self.step * self.spec.batch
            precision = self.spec.snapshot_precision
            checkpoint.snapshot(self.run, samples, self.averages, precision)

    def _finish(self) -> None:
        next(iter(self.averages.values())).copy_to(self.net)
        self.net.eval()


def _gradient(p: nn.Parameter) -> Tensor:
    """The gradient of a weight, also of one that no loss of this process reached."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad
