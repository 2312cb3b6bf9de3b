"""Run folders: which run they belong to, and who may work there."""

import json
import os
import subprocess
import sys
import time

import miniature
import pytest

from diffbook_lib import files
from diffbook_lib.errors import Refused
from diffbook_lib.runs import folder, presets, training
from diffbook_lib.runs.cells import execute
from diffbook_lib.runs.folder import FolderError, SpecMismatch


@pytest.fixture
def spec(repository):
    return presets.resolve("counts", "tiny")


@pytest.fixture
def run(repository):
    return repository / "run"


def test_same_specification_continues(run, spec):
    assert folder.open_run(run, spec) == run
    before = (run / "spec.json").read_bytes()
    assert folder.check(run, spec)
    assert folder.open_run(run, spec) == run
    assert (run / "spec.json").read_bytes() == before
    assert folder.read_spec(run) == spec and type(folder.read_spec(run)) is type(spec)


def test_every_resolved_value_is_written(run, spec):
    folder.open_run(run, spec)
    written = json.loads((run / "spec.json").read_text())
    assert list(written) == list(type(spec).model_fields)


def test_no_folder_means_the_default_one(repository, spec):
    assert folder.open_run("", spec) == repository / "runs" / "counts-tiny"


def test_checking_writes_nothing(run, spec):
    assert not folder.check(run, spec)
    assert not run.exists()


def test_other_specification_is_refused_with_the_difference(run, spec):
    folder.open_run(run, spec)
    other = presets.resolve("counts", "tiny", {"lr": 0.5, "steps": 7})
    with pytest.raises(SpecMismatch) as error:
        folder.open_run(run, other)
    changed = [line for line in str(error.value).splitlines() if "->" in line][1:]
    assert changed == ["  steps: 6 -> 7", "  lr: 0.01 -> 0.5"]
    assert folder.read_spec(run) == spec
    other_method = presets.resolve("ladder", "tiny")
    with pytest.raises(
        SpecMismatch, match=r"(?s)method: 'counts' -> 'ladder'.*threshold: .*absent"
    ):
        folder.open_run(run, other_method)


def edit(run, change):
    old = json.loads((run / "spec.json").read_text())
    change(old)
    (run / "spec.json").write_text(json.dumps(old))


def test_a_folder_from_before_a_field_with_a_default_continues(run, spec):
    """And trains on from its checkpoint, to the end of a run that was never interrupted."""
    folder.open_run(run, spec)
    task = execute(spec, "build")["task"]
    for event in training.events(task, spec, run):
        if event.step == 2:
            break
    edit(run, lambda old: [old.pop(name) for name in ("clip", "sweep", "noise_seed", "threshold")])
    assert folder.read_spec(run) == spec
    assert folder.open_run(run, spec) == run
    rest = list(training.events(execute(spec, "build")["task"], spec, run))
    assert rest[0].resumed and rest[0].step == 2 and rest[-1].step == spec.steps


def test_a_folder_from_before_a_field_that_is_now_set_is_refused(run, spec):
    folder.open_run(run, spec)
    edit(run, lambda old: old.pop("clip"))
    other = presets.resolve("counts", "tiny", {"clip": 0.5})
    with pytest.raises(SpecMismatch, match=r"clip: 1\.0 -> 0\.5"):
        folder.open_run(run, other)


def test_a_folder_that_lacks_a_value_without_a_default_or_knows_more_is_refused(run, spec):
    folder.open_run(run, spec)
    edit(run, lambda old: old.pop("lr"))
    with pytest.raises(Refused, match="lr is missing"):
        folder.read_spec(run)
    edit(run, lambda old: old.update(lr=0.01, lrate=0.01))
    with pytest.raises(Refused, match="unknown parameter 'lrate'"):
        folder.open_run(run, spec)


@pytest.mark.parametrize("content", ["", '{"method": "cl', "[1]", "\0\0"])
def test_damaged_specification_is_reported(run, spec, content):
    folder.open_run(run, spec)
    (run / "spec.json").write_text(content)
    for use in (lambda: folder.open_run(run, spec), lambda: folder.read_spec(run)):
        with pytest.raises(FolderError, match="damaged"):
            use()


def test_checkpoints_without_specification_are_not_adopted(run, spec):
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "000000000016.safetensors").touch()
    with pytest.raises(FolderError, match=r"no spec\.json"):
        folder.open_run(run, spec)
    with pytest.raises(FolderError, match="no run folder"):
        folder.read_spec(run)


# --- locks ---------------------------------------------------------------------------------

HOLD = """
import sys
from diffbook_lib.runs import folder, presets

folder.open_run(sys.argv[1], presets.resolve("counts", "tiny"))
print("open", flush=True)
sys.stdin.read()
"""
LOCK = """
import fcntl, sys

file = open(sys.argv[1] + "/.lock", "a+")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("open", flush=True)
sys.stdin.read()
"""  # the same without the library, which takes its time


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 0.0)


def start(root, script, *arguments, **named):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**miniature.environment(root), **named.pop("env", {})},
        text=True,
        **named,
    )


def test_a_second_process_is_told_who_works_there(repository, run, spec, impatient):
    other = start(repository, HOLD, run)
    assert other.stdout.readline() == "open\n"
    try:
        for use in (lambda: folder.open_run(run, spec), lambda: folder.lock(run)):
            with pytest.raises(
                FolderError, match=f"process {other.pid} works in {run}; wait until"
            ):
                use()
        folder.lock(repository / "another")
    finally:
        other.kill()
        other.communicate()
    assert folder.open_run(run, spec) == run  # the system freed it with the process
    assert (run / ".lock").read_text() == str(os.getpid())


def test_a_second_process_waits_for_one_that_ends(repository, run, spec, monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 600.0)
    run.mkdir()
    other = start(repository, LOCK, run)
    assert other.stdout.readline() == "open\n"
    waits = []

    def wait(seconds):
        waits.append(seconds)
        other.communicate()

    monkeypatch.setattr(time, "sleep", wait)
    folder.open_run(run, spec)
    assert waits


def test_the_specification_is_written_under_the_lock(run, spec, monkeypatch):
    """And looked at again once the lock is there: another process may have written it."""
    lock, write = folder.lock, files.atomic_write
    locked = []

    def noted(at):
        lock(at)
        locked.append(at)

    def checked(path, content):
        assert locked == [path.parent]
        write(path, content)

    monkeypatch.setattr(folder, "lock", noted)
    monkeypatch.setattr(files, "atomic_write", checked)
    folder.open_run(run, spec)
    assert locked == [run]
    monkeypatch.setattr(files, "atomic_write", write)

    def late(at):
        lock(at)
        other = presets.resolve("counts", "tiny", {"steps": 7})
        write(at / "spec.json", other.model_dump_json().encode())

    monkeypatch.setattr(folder, "lock", late)
    with pytest.raises(SpecMismatch, match="steps: 7 -> 6"):
        folder.open_run(run.parent / "late", spec)


def test_a_refused_start_writes_no_specification(repository, run, spec, impatient):
    run.mkdir()
    other = start(repository, LOCK, run)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(FolderError, match="works in"):
        folder.open_run(run, spec)
    other.communicate()
    assert not (run / "spec.json").exists()


def test_a_process_may_lock_again_what_it_has_locked(run, spec, impatient):
    folder.lock(run)
    folder.lock(run)
    assert folder.open_run(run, spec) == run


def test_a_child_works_under_the_lock_of_its_parent(repository, run, spec, impatient):
    """Which lasts as long as either lives."""
    folder.open_run(run, spec)
    member = run / "members" / "one"
    environment, descriptors = folder.handed_on(member)
    assert environment == {folder.INHERITED: str(run)} and len(descriptors) == 1
    child = start(repository, HOLD, run, env=environment, pass_fds=descriptors)
    assert child.stdout.readline() == "open\n"
    folder.unlock(run)
    with pytest.raises(FolderError, match=f"process {os.getpid()} works in"):
        folder.lock(run)
    child.communicate()
    assert child.returncode == 0
    folder.lock(run)


def test_a_child_inherits_no_lock_of_other_folders(repository, run, spec, impatient):
    folder.open_run(run, spec)
    assert folder.handed_on(repository / "other") == ({}, ())
    environment, descriptors = folder.handed_on(run)
    folder.lock(repository / "other")
    child = start(
        repository,
        HOLD.replace("folder.open_run", "folder.PATIENCE = 0.0\nfolder.open_run"),
        repository / "other",
        env=environment,
        pass_fds=descriptors,
        stderr=subprocess.PIPE,
    )
    _, errors = child.communicate()
    assert child.returncode == 1 and f"process {os.getpid()} works in" in errors


def test_a_lock_that_was_inherited_is_for_its_folder(run, monkeypatch):
    """And for those inside it; another is locked by the process itself."""
    monkeypatch.setenv(folder.INHERITED, str(run))
    for inside in (run, run / "members" / "one"):
        folder.lock(inside)
        assert not inside.exists()
    folder.lock(run.parent / "other")
    assert [path.name for path in run.parent.glob("other/.*")] == [".lock"]


def test_an_unlocked_folder_is_free(repository, run, spec):
    folder.open_run(run, spec)
    folder.unlock(run)
    other = start(repository, LOCK, run)
    assert other.stdout.readline() == "open\n"
    other.communicate()
    folder.unlock(run)  # nothing to do
