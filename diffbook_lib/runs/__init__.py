"""The way of a run: preset, specification, notebook cells, task, training, samples, record.

`runs` knows no method: it finds `specs/<method>.py` and `nbs/<method>.ipynb` by name. What a run
notebook needs stands here; the rest is found in the modules.
"""

from diffbook_lib.runs.folder import open_run
from diffbook_lib.runs.grading import finish, grade, judge_of, measure
from diffbook_lib.runs.sweeps import Member, members, train_members
from diffbook_lib.runs.presets import collect
from diffbook_lib.runs.sampling import Samples, sample
from diffbook_lib.runs.task import Task
from diffbook_lib.runs.training import train

__all__ = [
    "Member",
    "Samples",
    "Task",
    "collect",
    "finish",
    "grade",
    "judge_of",
    "measure",
    "members",
    "open_run",
    "sample",
    "train",
    "train_members",
]
