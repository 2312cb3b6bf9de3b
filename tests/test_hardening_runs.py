"""Run folders under what happens to them: full disks, kills, other versions, damaged records."""

import errno
import json
import os
import sys

import miniature
import pytest
import torch
from safetensors.torch import load_file

from diffbook_lib import files
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import (
    cells,
    checkpoint,
    folder,
    jobs,
    launch,
    presets,
    records,
    results,
    sampling,
    sweeps,
    training,
)
from diffbook_lib.runs.checkpoint import PartsDiffer
from diffbook_lib.runs.launch import RunFailed


@pytest.fixture
def spec(repository):
    return presets.resolve("counts", "tiny")


@pytest.fixture
def run(repository):
    return repository / "runs" / "counts-tiny"


def trained(run, spec, until=None):
    """The run trained, or left after the event of a step."""
    task = cells.execute(spec, "build")["task"]
    for event in training.events(task, spec, folder.open_run(run, spec)):
        if event.step == until:
            break
    return run


# --- the executed notebook -----------------------------------------------------------------


def full_disk(monkeypatch, name):
    """No more room for the files of this name."""
    plain = os.fsync

    def fsync(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.slow
def test_a_full_disk_leaves_the_executed_notebook_that_was_there(repository, run, monkeypatch):
    jobs.run("counts", "tiny")
    before = (run / "notebook.ipynb").read_bytes()
    (run / "record.json").unlink()
    full_disk(monkeypatch, "ipynb")
    with pytest.raises(files.WriteFailed, match=r"notebook\.partial\.ipynb .*written: No space"):
        jobs.run("counts", "tiny")
    assert (run / "notebook.ipynb").read_bytes() == before


def killed_after_the_record(run, spec, text):
    """What such a kill leaves: a record, and the notebook under papermill's name."""
    folder.open_run(run, spec)
    write_record(run, spec)
    (run / "notebook.partial.ipynb").write_text(text)


def write_record(run, spec):
    seconds = {"training_seconds": 1.0, "sampling_seconds": 1.0, "grading_seconds": 1.0}
    measured = [Measurement("Spread", 1.0, 10, 0)]
    return records.write_record(run, spec, measured, **seconds)


def test_a_run_killed_after_its_record_keeps_its_notebook(repository, run, spec, monkeypatch):
    monkeypatch.setattr(jobs, "_execute", None)
    killed_after_the_record(run, spec, '{"cells": [1]}')
    jobs.run("counts", "tiny")
    assert json.loads((run / "notebook.ipynb").read_text())["cells"]
    assert not (run / "notebook.partial.ipynb").exists()


# --- where a record's numbers come from ----------------------------------------------------


def test_a_record_names_every_start(repository, run, spec, monkeypatch):
    """The code, the processes and the seconds of each; a start that only finds what is there
    is none of them."""
    from diffbook_lib.runs import origin

    code = [("a" * 40, False)]
    monkeypatch.setattr(origin, "_own_code", lambda: code[-1])
    for until, next_code in ((2, ("b", True)), (4, ("c", False)), (None, ("d", False))):
        trained(run, spec, until)
        code.append((next_code[0] * 40, next_code[1]))
    miniature.execute(repository, "counts", {}, preset="tiny", out=str(run), processes=1)
    record = records.read_record(run)
    found = [(s.stage, s.commit[0], s.dirty, s.processes) for s in record.starts]
    assert found == [
        ("training", "a", False, 1),
        ("training", "b", True, 1),
        ("training", "c", False, 1),
        ("sampling", "d", False, 1),
    ]
    *training_starts, drawn = [start.seconds for start in record.starts]
    assert min(training_starts) > 0
    assert sum(training_starts) == pytest.approx(record.training_seconds)
    assert drawn == pytest.approx(record.sampling_seconds)


def test_starts_tell_how_many_processes_trained(repository, spec):
    """Two began, one ended."""
    run = folder.open_run(repository / "two", spec)
    folder.unlock(run)
    miniature.finish(repository, *miniature.start_two(repository, "train", run))
    max((run / "checkpoints").iterdir()).unlink()
    jobs.train_folder(run)
    saved = checkpoint.newest(run / "checkpoints").info["progress"]["starts"]
    assert [start["processes"] for start in saved] == [2, 1]


# --- checkpoints of another version --------------------------------------------------------


def rewritten(run, change):
    """The newest checkpoint with another content, whole by its SHA-256."""
    found = checkpoint.newest(run / "checkpoints")
    change(found.tensors, found.info)
    files.write_tensors(found.path, found.tensors, found.info)


def drop(word):
    def change(tensors, info):
        for name in [name for name in tensors if word in name]:
            del tensors[name]

    return change


def narrow(tensors, info):
    tensors["optimizer/1/exp_avg"] = tensors["optimizer/1/exp_avg"][:1]


def rename(tensors, info):
    info["progress"]["pace"] = info["progress"].pop("samples_per_second")


OTHERS = {
    "without parts": (lambda t, info: info.pop("parts"), "does not say its parts"),
    "without progress": (lambda t, info: info.pop("progress"), "does not say its progress"),
    "other progress": (rename, "lacks samples_per_second and has besides pace"),
    "no moments": (drop("optimizer/"), r"weight 0 are \[\], not \['exp_avg', 'exp_avg_sq'"),
    "one moment less": (drop("optimizer/2/exp_avg_sq"), r"weight 2 are \['exp_avg', 'step'\]"),
    "moments of another shape": (narrow, r"exp_avg of weight 1 has shape \(1,\), not \(16,\)"),
}


@pytest.mark.parametrize(("change", "words"), OTHERS.values(), ids=OTHERS)
def test_checkpoints_of_another_version_are_named_with_what_differs(run, spec, change, words):
    trained(run, spec, until=2)
    rewritten(run, change)
    kept = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    with pytest.raises(PartsDiffer, match=rf"{24:012d}\.safetensors is of another.*{words}"):
        trained(run, spec)
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == kept


def test_a_weight_that_no_loss_reaches_has_no_moments(tmp_path):
    """And its run continues."""
    import test_training

    def task():
        made = test_training.task()
        return made.__class__(made.net, made.loss, made.dataset, {"idle": torch.nn.Linear(1, 1)})

    for stop in (10, None):
        for event in training.events(task(), test_training.SPEC, tmp_path):
            if event.step == stop:
                break
    assert event.step == test_training.SPEC.steps
    assert checkpoint.newest(tmp_path / "checkpoints").info["idle"]


def test_samples_of_another_version_are_drawn_anew(repository, run, spec):
    trained(run, spec)
    (member,) = sweeps.members(spec, run)
    (before,) = sampling.sample(member)
    first = min((run / "samples").rglob("*.safetensors"))
    files.write_tensors(first, load_file(first), {"drawn": 4})
    (again,) = sampling.sample(member)
    assert torch.equal(before.x, again.x) and again.nfe == before.nfe


# --- damaged records -----------------------------------------------------------------------


def test_a_damaged_record_says_what_to_do(repository, run, spec, monkeypatch):
    monkeypatch.setattr(jobs, "_execute", None)
    folder.open_run(run, spec)
    file = write_record(run, spec)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(records.RecordError, match=r"record\.json is not a valid record.*remove it"):
        jobs.run("counts", "tiny")


@pytest.mark.parametrize("content", ["", "{", '{"spec": {"method": "counts"}}', "[1]", "\0", None])
def test_one_damaged_record_does_not_hide_the_others(repository, spec, content):
    runs = repository / "runs"
    for name in ("counts-a", "counts-b"):
        (runs / name).mkdir(parents=True)
        write_record(runs / name, spec)
    damaged = runs / "counts-a" / "record.json"
    damaged.unlink()
    damaged.mkdir() if content is None else damaged.write_text(content)
    table = results.table("counts", local=True)
    assert "runs/counts-b" in table
    assert f"notshown:{damaged}" in "".join(table.split())  # lines are wrapped


# --- processes -----------------------------------------------------------------------------


def test_a_killed_launcher_is_named(repository, spec, monkeypatch):
    run = folder.open_run(repository / "run", spec)
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(launch, "command", lambda *arguments: command)
    with pytest.raises(RunFailed, match=r"was ended by SIGKILL.*continues from the last"):
        launch.torchrun(run, 2, "train")
