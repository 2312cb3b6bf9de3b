"""The training loop of every method: a generator of events that drives one run to its end.

Step n needs nothing but the checkpoint of step n and (seed, n): its data, its noise and its
dropout are keyed, so a run killed at any moment ends with the bits of an undisturbed one, and
several processes train on what one would.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from diffbook_lib import checkpoint, rng
from diffbook_lib.ema import EMA
from diffbook_lib.journal import Log, Progress, watch

if TYPE_CHECKING:
    from diffbook_lib.data import Dataset
    from diffbook_lib.presets import RunSpec

Loss = Callable[..., Tensor]  # loss(net, batch, generator) -> (batch,)


__all__ = ["Progress", "Stateful", "Trainer", "TrainingDiverged", "averaged", "learning_rate"]
__all__ += ["train", "watch"]


class TrainingDiverged(ValueError):
    """The loss or its gradient is no longer a finite number."""


class Stateful(Protocol):
    """Anything that changes while training; its state is a flat mapping of tensors."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> Any: ...


def learning_rate(step: int, spec: "RunSpec") -> float:
    """The learning rate of step number `step`, counted from 1.

    A linear warm-up to `spec.lr`, then constant, half a cosine to 0 at the end, or falling as
    sqrt(reference_steps / step) (reference_steps: where the fall begins; by default the end of
    the warm-up).
    """
    warmup = spec.warmup_steps
    rate = spec.lr * min(step / warmup, 1) if warmup else spec.lr
    match spec.schedule:
        case "constant":
            return rate
        case "cosine":
            course = max(step - 1 - warmup, 0) / max(spec.steps - warmup, 1)
            return rate * (1 + math.cos(math.pi * course)) / 2
        case "inverse-sqrt":
            reference = spec.reference_steps or max(warmup, 1)
            return rate / math.sqrt(max(step / reference, 1))
    raise ValueError(
        f"unknown schedule {spec.schedule!r}; schedules: constant, cosine, inverse-sqrt"
    )


def train(
    net: nn.Module,
    loss: Loss,
    dataset: "Dataset",
    spec: "RunSpec",
    folder: Path | None = None,
    **named: Any,
) -> Iterator[Progress]:
    """Train `net`, or continue the run in `folder`; at the last event `net` holds its average.

    `loss(net, batch, generator)` gives one number an example. An event comes every
    `spec.log_every` steps, at every checkpoint and at the end; a run that is continued first
    yields the event of its checkpoint, a finished one only that. Without a folder nothing is
    written. Leaving the loop early saves a checkpoint. `state` names further objects to be saved
    with the network; `processes` is the number of processes that must be taking part (by default
    what the launcher says).

    Raises ValueError for a batch that does not fit, TrainingDiverged for a loss that is not
    finite, CheckpointError for checkpoints that cannot be written or read.
    """
    return iter(Trainer(net, loss, dataset, spec, folder, **named))


class Trainer:
    """One run, with the arguments of `train`; iterating over it trains. `ema` is the average of
    `net` at any event."""

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        dataset: "Dataset",
        spec: "RunSpec",
        folder: Path | None = None,
        *,
        state: Mapping[str, Stateful] | None = None,
        processes: int | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.workers = Accelerator(cpu=not torch.cuda.is_available())
        _check(spec, dataset, self.workers.num_processes, processes)
        self.loss, self.spec, self.folder = loss, spec, folder
        self.device = self.workers.device
        self.dataset = dataset.to(self.device)
        self.net = net.to(self.device)
        self.model = self.workers.prepare_model(
            BFloat16(self.net) if spec.precision == "bf16" else self.net
        )
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=spec.lr,
            betas=(spec.adam_beta1, spec.adam_beta2),
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self.ema = EMA(self.net, spec.ema, spec.ema_value)
        self.parts: dict[str, Stateful] = {"net": self.net, "ema": self.ema}
        self.parts |= {f"state/{name}": part for name, part in (state or {}).items()}
        self.step = 0
        self.saved: Path | None = None

    def __iter__(self) -> Iterator[Progress]:
        last = self._restore()
        if last:
            yield last
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
        periods = self.spec.log_every, self.spec.checkpoint_every
        return min(*(n - self.step % n for n in periods), self.spec.steps - self.step)

    def _advance(self) -> Tensor:
        """One optimiser step; its loss and gradient norm (2,), left on the device."""
        spec = self.spec
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step + 1, spec)
        total = torch.zeros((), device=self.device)
        for micro in range(spec.accumulate):
            last = micro == spec.accumulate - 1
            with nullcontext() if last else self.workers.no_sync(self.model):
                loss = self._micro_loss(micro) / spec.accumulate
                loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), spec.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.net)
        self.step += 1
        return torch.stack([total, norm])

    def _micro_loss(self, micro: int) -> Tensor:
        """The mean loss of this process's micro batch: its rows of the global batch and noise."""
        spec, step = self.spec, self.step
        share = self.workers.process_index * spec.accumulate + micro
        rows = spec.batch // (self.workers.num_processes * spec.accumulate)
        start, stop = share * rows, (share + 1) * rows
        batch = self.dataset.batch(spec.seed, step, spec.batch, start, stop)
        noise = rng.generator(spec.seed, "loss", step, self.device)
        torch.manual_seed(rng.generator(spec.seed, f"dropout {share}", step).initial_seed())
        losses = self.loss(self.model, batch, rng.Share(noise, start, stop, spec.batch))
        if losses.shape != (rows,):
            raise ValueError(
                f"the loss has shape {tuple(losses.shape)} for {rows} examples; it must return "
                f"one number an example, shape ({rows},)"
            )
        return losses.mean()

    def _progress(self, measured: list[Tensor], started: float, before: float) -> Progress:
        """Fetch what the steps measured: the only place where the host waits for the device."""
        values = self.workers.reduce(torch.stack(measured), "mean").tolist()
        elapsed = perf_counter() - started
        for step, (loss, norm) in enumerate(values, self.step - len(values) + 1):
            if not math.isfinite(loss + norm):
                raise TrainingDiverged(self._diagnosis(step, loss, norm))
        loss, norm = (math.fsum(column) / len(values) for column in zip(*values, strict=True))
        return Progress(
            step=self.step,
            samples=self.step * self.spec.batch,
            loss=loss,
            lr=learning_rate(self.step, self.spec),
            grad_norm=norm,
            samples_per_second=len(values) * self.spec.batch / elapsed,
            seconds=before + elapsed,
        )

    def _diagnosis(self, step: int, loss: float, norm: float) -> str:
        spec = self.spec
        return (
            f"step {step}: the loss is {loss} and the norm of its gradient {norm}. Last good "
            f"checkpoint: {self.saved or 'none'}. The same run would fail again; start another "
            f"with a smaller lr (now {spec.lr}), more warmup_steps (now {spec.warmup_steps}), "
            f"clip = 1.0 (now {spec.clip}) or precision = 'fp32' (now {spec.precision!r})."
        )

    def _open_log(self) -> AbstractContextManager[Callable[[Progress], None]]:
        if self.folder is None or not self.workers.is_main_process:
            return nullcontext(lambda progress: None)
        return Log(self.folder, self.step)

    def _save(self, progress: Progress) -> None:
        """Write the checkpoint of this step, unless it is there already."""
        if self.folder is None or (self.saved and int(self.saved.stem) == progress.samples):
            return
        self.saved = checkpoint.file(self.folder / "checkpoints", progress.samples)
        if not self.workers.is_main_process:
            return
        states = {name: part.state_dict() for name, part in self.parts.items()}
        for name, p in self.net.named_parameters():
            states[f"optimizer/{name}"] = self.optimizer.state[p]
        tensors = {
            f"{owner}/{name}": value
            for owner, values in states.items()
            for name, value in values.items()
        }
        info = {"progress": asdict(progress)}
        checkpoint.save(self.saved.parent, progress.samples, tensors, info)

    def _restore(self) -> Progress | None:
        """Take up the newest checkpoint of the run, if there is one."""
        found = checkpoint.newest(self.folder / "checkpoints") if self.folder else None
        if found is None:
            return None
        for name, part in self.parts.items():
            part.load_state_dict(_part(found, name))
        for name, p in self.net.named_parameters():
            self.optimizer.state[p] = {
                key: torch.empty_like(p, dtype=value.dtype).copy_(value)
                if value.shape == p.shape
                else value.to(p.device)
                for key, value in _part(found, f"optimizer/{name}").items()
            }
        progress = Progress(**{**found.info["progress"], "resumed": True})
        self.step, self.saved = progress.step, found.path
        if self.step == self.spec.steps:
            self._finish()
        return progress

    def _finish(self) -> None:
        self.ema.copy_to(self.net)
        self.net.eval()


class BFloat16(nn.Module):
    """A network computed in bfloat16 where that is safe (autocast), with float32 results."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Any:
        from accelerate.utils import convert_to_fp32

        with torch.autocast(x.device.type, torch.bfloat16):
            result = self.net(x, *arguments, **named)
        return convert_to_fp32(result)


def averaged(net: nn.Module, folder: Path) -> nn.Module:
    """`net` with the averaged weights of the newest checkpoint in a run folder, for evaluation."""
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise checkpoint.CheckpointError(f"{folder} holds no checkpoint yet; train the run first")
    average = EMA(net, "classic", 0.0)
    average.load_state_dict(_part(found, "ema"))
    average.copy_to(net)
    return net.eval()


def _part(found: checkpoint.Checkpoint, owner: str) -> dict[str, Tensor]:
    """The tensors of one owner in a checkpoint, under their own names."""
    prefix = f"{owner}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in found.tensors.items()
        if name.startswith(prefix)
    }


def _check(spec: "RunSpec", dataset: "Dataset", taking_part: int, processes: int | None) -> None:
    """Raise ValueError unless the batch fits the data and the processes that take part."""
    asked = processes or int(os.environ.get("WORLD_SIZE", "1"))
    if taking_part != asked:
        raise ValueError(
            f"{asked} processes were asked for but {taking_part} take part; start them with "
            f"python -m torch.distributed.run --standalone --nproc_per_node {asked}"
        )
    shares = taking_part * spec.accumulate
    if spec.batch % shares:
        raise ValueError(
            f"batch is {spec.batch}; it must be a multiple of {shares}, {taking_part} processes "
            f"times accumulate = {spec.accumulate}"
        )
    if spec.batch > dataset.size:
        raise ValueError(
            f"batch is {spec.batch} but the data set has {dataset.size} examples; take a smaller "
            "batch"
        )
