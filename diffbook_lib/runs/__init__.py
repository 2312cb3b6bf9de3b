"""The way of a run: preset, specification, notebook cells, task, training, samples, record.

`runs` knows no method: it finds `specs/<method>.py` and `nbs/<method>.ipynb` by name. What a run
notebook needs stands here, imported when it is asked for, so that listing presets needs no torch;
the rest is found in the modules.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "Frozen": "frozen",
    "Member": "sweeps",
    "Samples": "sampling",
    "Task": "task",
    "apart": "comparing",
    "collect": "presets",
    "crossed": "tables",
    "finish": "grading",
    "grade": "grading",
    "device": "workers",
    "drawn": "sampling",
    "judge_of": "grading",
    "judged": "grading",
    "measure": "grading",
    "members": "sweeps",
    "open_run": "folder",
    "places": "comparing",
    "restore": "restoring",
    "sample": "sampling",
    "snapshots": "checkpoint",
    "train": "training",
    "train_members": "sweeps",
    "trained": "restoring",
    "values": "comparing",
}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
