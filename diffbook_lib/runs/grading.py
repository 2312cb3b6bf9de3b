"""From samples to the record of a run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from torch import Tensor

from diffbook_lib import data
from diffbook_lib.bars import progress_bar
from diffbook_lib.metrics import Judge, Measurement
from diffbook_lib.runs import origin, records
from diffbook_lib.runs.sampling import Samples
from diffbook_lib.runs.sweeps import Member
from diffbook_lib.runs.workers import device
from diffbook_lib.specs import RunSpec


@dataclass(frozen=True)
class Graded:
    """Measured figures with their coordinates, and the seconds they took."""

    results: list[Measurement]
    seconds: float


def judge_of(
    spec: RunSpec, dataset: data.ArrayDataset | data.SampledDataset
) -> Judge:
    """The judge of a run's samples, with everything it needs at hand: asked for before training,
    so that what cannot be had is said then. Raises what `Judge.of` raises."""
    unseen = data.held_out(spec) if spec.path else None
    return Judge.of(
        dataset,
        held_out=unseen if isinstance(unseen, data.ArrayDataset) else None,
        allow_partial=spec.allow_partial,
        device=device(),
        seed=spec.noise_seed,
    )


def grade(
    samples: Iterable[Samples], judge: Callable[[Tensor], list[Measurement]]
) -> Graded:
    """What `judge` measures of each way of sampling, with its coordinates and network calls."""
    started = perf_counter()
    results = [
        replace(
            found,
            at={**drawn.at, **found.at},
            details={**found.details, "nfe": drawn.nfe},
        )
        for drawn in progress_bar()(list(samples), "grading", unit="set")
        for found in judge(drawn.x)
    ]
    return Graded(results, perf_counter() - started)


def measure(
    members: Iterable[Member],
    figure: Callable[[Member], Measurement | Iterable[Measurement]],
) -> Graded:
    """What `figure` measures of each member itself, with the member's coordinates before
    the figure's own."""
    started = perf_counter()
    found = []
    for member in progress_bar()(list(members), "measuring", unit="model"):
        figures = figure(member)
        several = [figures] if isinstance(figures, Measurement) else figures
        found += [replace(one, at={**member.at, **one.at}) for one in several]
    return Graded(found, perf_counter() - started)


def judged(samples: Sequence[Samples], judge: Judge, spec: RunSpec) -> Graded:
    """Every figure of every way of sampling, and how near the run's own way comes to copies
    of training images."""
    own = [drawn for drawn in samples if spec.cells()[0].items() <= drawn.at.items()]
    parts = grade(samples, judge.grade), grade(own, judge.copies)
    results = [found for part in parts for found in part.results]
    return Graded(results, sum(part.seconds for part in parts))


def finish(
    run: Path,
    spec: RunSpec,
    members: Sequence[Member],
    samples: Sequence[Samples],
    *graded: Graded,
    processes: int = 1,
) -> Path:
    """Write the record of a run, which marks it as complete; returns its file."""
    trained = [one for m in members if m.progress for one in m.progress.starts]
    drawn = origin.together(one for part in samples for one in part.starts)
    return records.write_record(
        run,
        spec,
        [found for part in graded for found in part.results],
        training_seconds=sum(m.progress.seconds for m in members if m.progress),
        sampling_seconds=sum(part.seconds for part in samples),
        grading_seconds=sum(part.seconds for part in graded),
        processes=processes,
        starts=(*trained, *drawn),
    )
