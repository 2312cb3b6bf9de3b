"""Sampling is run like training: the images of each way of sampling are drawn in batches by their
numbers, kept in the run folder as they come, continued after a kill, shared among processes.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from diffbook_lib import files
from diffbook_lib.bars import progress_bar
from diffbook_lib.runs import cells, checkpoint, folder
from diffbook_lib.runs.launch import torchrun
from diffbook_lib.runs.restoring import restore
from diffbook_lib.runs.sweeps import Member, label
from diffbook_lib.runs.workers import Workers


@dataclass(frozen=True)
class Samples:
    """The images of one way of sampling.

    at: its coordinates, those of the member among them. x (n, *shape) on the CPU as the run
    notebook's `draw` gave them. nfe: network calls for one image, the most over the batches.
    seconds: spent drawing, over all starts and processes.
    """

    at: dict[str, Any]
    x: Tensor
    nfe: int
    seconds: float


def sample(member: Member, processes: int = 1) -> list[Samples]:
    """The samples of a trained member for every cell of its table, drawn or found.

    `draw(numbers, **at)`, defined by the cells tagged "sample", gives the images with these
    numbers, (len(numbers), *shape), and the network calls that one of them took. A coordinate
    "average" is not handed on: it names the average of the weights that draws. Several
    processes execute the cells of the run notebook's file.
    """
    folder.lock(member.folder)
    if processes > 1:
        torchrun(member.folder, processes, "sample")
    draw_missing(member)
    return [_collect(member, at) for at in member.spec.cells()]


def drawn(run: Path) -> Samples:
    """The samples of a finished run's own way of sampling; CheckpointError without them."""
    spec = folder.read_spec(run)
    return _collect(Member(spec, run, {}, {}), spec.cells()[0])


def draw_missing(member: Member) -> None:
    """Draw this process's share of the batches that are not there yet."""
    spec, workers = member.spec, Workers(member.folder)
    weights = files.stated_digest(
        checkpoint.newest_file(member.folder / "checkpoints")
    )
    batches = [
        (at, first)
        for at in spec.cells()
        for first in range(0, spec.samples, spec.sample_batch)
    ]
    missing = [
        (at, first)
        for at, first in batches[workers.index :: workers.count]
        if not _is_there(_file(member, at, first), weights)
    ]
    if not missing:
        return
    (draw,) = cells.defined(member.names, "draw")
    net, loaded = member.task.net.to(workers.device), None
    silent = {} if workers.is_first else {"disable": True}
    for at, first in progress_bar()(
        missing, "sampling", unit="batch", mininterval=1, **silent
    ):
        numbers = list(range(first, min(first + spec.sample_batch, spec.samples)))
        if loaded != (loaded := at.get("average", "")):
            restore(net, member.folder, spec, loaded)
        way = {name: value for name, value in at.items() if name != "average"}
        started = perf_counter()
        with torch.no_grad():
            x, nfe = draw(numbers, **way)
        info = {"nfe": nfe, "seconds": perf_counter() - started, "weights": weights}
        checkpoint.write(_file(member, at, first), {"x": x}, info)
    restore(net, member.folder, spec)


def _collect(member: Member, at: dict[str, Any]) -> Samples:
    batches = [
        checkpoint.load(_file(member, at, first))
        for first in range(0, member.spec.samples, member.spec.sample_batch)
    ]
    return Samples(
        {**member.at, **at},
        torch.cat([batch.tensors["x"] for batch in batches]),
        max(batch.info["nfe"] for batch in batches),
        sum(batch.info["seconds"] for batch in batches),
    )


def _file(member: Member, at: dict[str, Any], first: int) -> Path:
    return member.folder / "samples" / label(at) / f"{first:012d}.safetensors"


def _is_there(path: Path, weights: str) -> bool:
    """Whether a batch is there, whole and drawn with these weights."""
    if not path.exists():
        return False
    try:
        return bool(checkpoint.load(path).info["weights"] == weights)
    except checkpoint.CheckpointError as error:
        warnings.warn(f"{error}; this batch is drawn anew", stacklevel=2)
        return False
