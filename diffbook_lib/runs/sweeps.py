"""The members of a run: one, or those of its sweep, each a run of its own, exactly resumable."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbook_lib.runs import cells, folder
from diffbook_lib.runs.progress import Progress
from diffbook_lib.runs.task import Task
from diffbook_lib.runs.training import train
from diffbook_lib.specs import RunSpec


@dataclass
class Member:
    """One member of a run.

    at: its coordinates in the sweep, {} for a run without one. names: what the cells of the run
    notebook define for its specification. progress: its last event, None before training.
    """

    spec: RunSpec
    folder: Path
    at: dict[str, Any]
    names: dict[str, Any] = field(repr=False)
    progress: Progress | None = None

    @property
    def task(self) -> Task:
        """What it trains."""
        task: Task = cells.defined(self.names, "task")[0]
        return task


def members(
    spec: RunSpec, run: Path, names: dict[str, Any] | None = None, *tags: str
) -> list[Member]:
    """The members of a run in the order of its sweep.

    names: the globals of the notebook, which serve a run without a sweep, so that what was
    changed there counts; members of a sweep execute the cells of the notebook's file that carry
    one of `tags` (by default "build" and "sample").
    """
    found = []
    for at in spec.members():
        own = spec.member(at)
        place = folder.open_run(run / "members" / label(at), own) if at else run
        made = (
            names
            if names and not at
            else cells.execute(own, *(tags or ("build", "sample")))
        )
        found.append(Member(own, place, at, made))
    return found


def train_members(
    spec: RunSpec,
    run: Path,
    names: dict[str, Any] | None = None,
    processes: int = 1,
) -> list[Member]:
    """Train the members of a run, or find them trained; one after the other."""
    found = members(spec, run, names)
    for member in found:
        if member.at:
            print(f"member {member.folder.name}", flush=True)
        member.progress = train(member.folder, member.spec, member.task, processes)
    return found


def label(at: dict[str, Any]) -> str:
    """Coordinates as the name of a folder, such as "seed-1_width-32"."""
    text = "_".join(f"{name}-{value}" for name, value in at.items())
    return re.sub(r"[^A-Za-z0-9._-]", "-", text) or "own"
