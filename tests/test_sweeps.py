"""A run with members: each a run of its own, exactly resumable, all in one record."""

import statistics
import time

import miniature
import pytest
import torch

from diffbook_lib.runs import checkpoint, folder, presets, records, sweeps
from diffbook_lib.runs.estimate import estimate
from diffbook_lib.runs.folder import FolderError, SpecMismatch

CHANGES = {"steps": 10, "snapshot_every": 5, "samples": 8}
NAMES = [f"seed-{seed}_width-{width}" for seed in (0, 1, 2) for width in (8, 16)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    with miniature.opened(tmp_path_factory.mktemp("sweeps")) as root:
        yield root


@pytest.fixture(scope="module")
def finished(repository):
    """3 seeds x 2 widths: undisturbed."""
    run = repository / "finished"
    command = ["notebook", "ladder", {"preset": "sweep", "out": str(run), **CHANGES}]
    miniature.finish(repository, miniature.start(repository, *command))
    return run


def kept(run):
    files = {path.relative_to(run): checkpoint.load(path) for path in run.rglob("*.safetensors")}
    return {f"{name}/{key}": t for name, file in files.items() for key, t in file.tensors.items()}


def assert_same(run, other):
    ours, theirs = kept(run), kept(other)
    assert ours and ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_sweep_makes_one_record_with_spreads(finished):
    record = records.read_record(finished)
    assert sorted(path.name for path in (finished / "members").iterdir()) == sorted(NAMES)
    assert record.samples_seen == 6 * 10 * 12
    assert len(record.results) == 6 * 2
    for found, at in zip(record.results[::2], record.spec.members(), strict=True):
        assert found.at == {**at, "nfe": 5}
    for width in (8, 16):
        for nfe in (5, 3):
            values = [m.value for m in record.select("Spread", width=width, nfe=nfe)]
            spread = record.spread("Spread", width=width, nfe=nfe)
            assert len(set(values)) == spread.seeds == 3
            assert spread.mean == pytest.approx(statistics.fmean(values))
            assert spread.std == pytest.approx(statistics.stdev(values))
    assert len(record.spreads) == 4
    seconds = 0.0
    for name in NAMES:
        newest = checkpoint.newest(finished / "members" / name / "checkpoints")
        assert newest
        seconds += newest.info["progress"]["seconds"]
    assert record.training_seconds == pytest.approx(seconds)


def test_a_member_is_a_run_of_its_own(repository, finished):
    """Trained and sampled alone by the command line it has the same bits."""
    spec = presets.resolve("ladder", "sweep", CHANGES)
    own = spec.member({"seed": 1, "width": 16})
    assert folder.read_spec(finished / "members" / "seed-1_width-16") == own
    assert own.sweep == {} and (own.seed, own.model_dump()["width"]) == (1, 16)
    run = folder.open_run(repository / "alone", spec)
    (member,) = [m for m in sweeps.members(spec, run) if m.at == {"seed": 1, "width": 16}]
    assert member.names["net"].stem.weight.shape[0] == 16
    for held in (run, *(run / "members").iterdir()):
        folder.unlock(held)
    for stage in ("train", "sample"):
        miniature.finish(repository, miniature.start(repository, stage, member.folder))
    assert_same(member.folder, finished / "members" / "seed-1_width-16")
    assert not list((run / "members" / "seed-0_width-8").glob("checkpoints/*"))


def test_the_folder_of_a_sweep_trains_and_samples_all_members(repository, finished):
    run = folder.open_run(repository / "stages", presets.resolve("ladder", "sweep", CHANGES))
    folder.unlock(run)
    for stage in ("train", "sample"):
        miniature.finish(repository, miniature.start(repository, stage, run))
    assert_same(run, finished)


def test_a_killed_sweep_continues(repository, finished):
    """In its third member: the first two are not trained again."""
    run = repository / "killed"
    command = ["notebook", "ladder", {"preset": "sweep", "out": str(run), **CHANGES}]
    process = miniature.start(repository, *command)
    while not list(run.glob(f"members/{NAMES[2]}/checkpoints/*{60:03d}.safetensors")):
        assert process.is_alive(), (repository / "log").read_text()
        time.sleep(0.001)
    miniature.kill(process)
    assert not (run / "record.json").exists()
    before = {path: path.stat().st_mtime_ns for path in run.glob("members/*/checkpoints/*")}
    before = {path: t for path, t in before.items() if path.parts[-3] in NAMES[:2]}
    assert len(before) == 4
    said = miniature.finish(repository, miniature.start(repository, *command))
    assert f"member {NAMES[5]}" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(run, finished)
    ours, theirs = (records.read_record(place) for place in (run, finished))
    assert (ours.results, ours.spreads) == (theirs.results, theirs.spreads)


def test_members_with_other_values_are_refused(repository):
    """A member's folder belongs to its specification."""
    run = folder.open_run(repository / "other", presets.resolve("ladder", "sweep", CHANGES))
    sweeps.members(folder.read_spec(run), run, None, "build")
    longer = presets.resolve("ladder", "sweep", {**CHANGES, "steps": 11})
    with pytest.raises(SpecMismatch, match="steps: 10 -> 11"):
        sweeps.members(longer, run, None, "build")


def test_one_who_works_in_a_member_keeps_others_out_of_it(repository, monkeypatch):
    """So that an array of jobs can train members side by side."""
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    spec = presets.resolve("ladder", "sweep", {**CHANGES, "steps": 100_000})
    run = folder.open_run(repository / "shared", spec)
    place = folder.open_run(run / "members" / NAMES[0], spec.member(spec.members()[0]))
    folder.unlock(run)
    folder.unlock(place)
    process = miniature.start(repository, "train", place)
    while not list(place.glob("checkpoints/*")):
        assert process.is_alive(), (repository / "log").read_text()
        time.sleep(0.001)
    with pytest.raises(FolderError, match=f"process {process.pid} works in {place}"):
        sweeps.members(spec, run, None, "build")
    miniature.kill(process)


def test_the_estimate_of_a_sweep_is_the_sum_of_its_members(repository):
    whole = estimate("ladder", "sweep", CHANGES)
    parts = [
        estimate("ladder", "sweep", {**CHANGES, **at, "sweep": {}})
        for at in presets.resolve("ladder", "sweep").members()
    ]
    assert whole.members == 6 and len({part.parameters for part in parts}) == 2
    assert whole.parameters == max(part.parameters for part in parts)
    for name in ("samples", "training_flops", "sampling_flops", "snapshot_bytes"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts) > 0
    assert whole.gpu_hours == pytest.approx(sum(part.gpu_hours for part in parts))
    assert "6 members" in str(whole)
