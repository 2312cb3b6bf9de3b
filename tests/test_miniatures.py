"""Two small methods through every door: the same specification, the same bits after kills, the
same training with one process, two processes and micro-batches."""

import json
import random
import time

import miniature
import pytest
import torch
from torch import nn

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.runs import checkpoint, folder, jobs, presets, records, training
from diffbook_lib.runs.task import Task
from diffbook_lib.specs import RunSpec

METHODS = ["counts", pytest.param("ladder", marks=pytest.mark.slow)]
BOTH = ["counts", "ladder"]


@pytest.fixture
def repository(tmp_path):
    with miniature.opened(tmp_path) as root:
        yield root


def tensors(run):
    return checkpoint.newest(run / "checkpoints").tensors


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = ("samples_per_second", "seconds")
    return [{name: v for name, v in line.items() if name not in timing} for line in lines]


def outcome(run):
    """What must be the same bits: all tensors of checkpoints, snapshots and samples, what was
    logged, what was measured."""
    files = {
        str(path.relative_to(run)): checkpoint.load(path) for path in run.rglob("*.safetensors")
    }
    kept = {f"{name}/{key}": t for name, file in files.items() for key, t in file.tensors.items()}
    logs = {str(p.relative_to(run)): metrics(p.parent) for p in run.rglob("metrics.jsonl")}
    record = records.read_record(run) if (run / "record.json").exists() else None
    return kept, logs, record and (record.spec, record.results, record.spreads)


def assert_same(run, other):
    (kept, *rest), (others, *other_rest) = outcome(run), outcome(other)
    assert kept and kept.keys() == others.keys()
    assert [name for name in kept if not torch.equal(kept[name], others[name])] == []
    assert rest == other_rest


def notebook(root, method, lines=""):
    """The run notebook opened by hand, with some lines added to its parameters cell."""
    import nbformat

    made = nbformat.read(root / "nbs" / f"{method}.ipynb", as_version=4)
    made.cells[0].source += lines
    return made


def kernel(root, made):
    from nbclient import NotebookClient

    NotebookClient(made, kernel_name="python3", resources={"metadata": {"path": root}}).execute()


def papermill(root, method, **parameters):
    from papermill import execute_notebook

    source = root / "nbs" / f"{method}.ipynb"
    execute_notebook(
        source, root / "out.ipynb", parameters, progress_bar=False, cwd=root, kernel_name="python3"
    )


def through_command_line(root, method, out, name, value):
    miniature.finish(root, miniature.start(root, *_run(method, out, name, value)))


def _run(method, out, name, value):
    return ["run", method, "tiny", "-p", name, value, "--out", out]


def through_papermill(root, method, out, name, value):
    papermill(root, method, preset="tiny", out=str(out), **{name: value})


def through_a_file(root, method, out, name, value):
    """`-f preset.yaml`: every value of the preset as a parameter."""
    papermill(root, method, **{**presets.read(method, "tiny"), name: value}, out=str(out))


def through_the_notebook(root, method, out, name, value):
    kernel(root, notebook(root, method, f"\nout = {str(out)!r}\n{name} = {value}\n"))


DOORS = [through_command_line, through_papermill, through_a_file, through_the_notebook]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_door_gives_the_same_run(repository, method):
    spec = presets.resolve(method, "tiny", {"steps": 8})
    alone = folder.open_run(repository / "alone", spec)
    folder.unlock(alone)
    for stage in ("train", "sample"):
        miniature.finish(repository, miniature.start(repository, stage, alone))
    for door in DOORS:
        run = repository / door.__name__
        door(repository, method, run, "steps", 8)
        assert folder.read_spec(run) == records.read_record(run).spec == spec
        kept, others = outcome(run)[0], outcome(alone)[0]
        assert kept.keys() == others.keys() and len(kept) > 10
        assert all(torch.equal(kept[name], others[name]) for name in kept)


@pytest.mark.parametrize(
    "door", DOORS[:2] + [pytest.param(d, marks=pytest.mark.slow) for d in DOORS[2:]]
)
def test_a_typo_is_refused_with_its_nearest_match(repository, door):
    with pytest.raises(Exception, match=r"unknown parameter 'stesp'.*did you mean 'steps'"):
        door(repository, "counts", repository / "run", "stesp", 8)
    assert not (repository / "run" / "spec.json").exists()


def test_cells_can_be_run_again_in_place(repository):
    """In one kernel: all of them once more, with what the first time left behind."""
    made = notebook(repository, "counts", f"\nout = {str(repository / 'run')!r}\n")
    again = notebook(repository, "counts", f"\nout = {str(repository / 'run')!r}\n")
    for number, cell in enumerate(again.cells):
        cell.id = f"again-{number}"
    made.cells += again.cells
    kernel(repository, made)
    run = repository / "run"
    assert folder.read_spec(run) == presets.resolve("counts", "tiny")
    assert [line["step"] for line in metrics(run)] == [2, 4, 6]


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("again", ["all cells", "the training cell"])
def test_stopped_before_the_first_checkpoint_and_run_again_in_the_same_kernel(
    repository, method, again, monkeypatch
):
    """The weights and the state that the first start left half-trained are not the beginning."""
    values = {"preset": "tiny", "checkpoint_every": 6}
    whole = {"out": str(repository / "whole"), **values}
    miniature.execute(repository, method, {}, **whole)
    plain, steps = training.Trainer._micro_batch, []

    def interrupted(trainer, micro):
        steps.append(micro)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return plain(trainer, micro)

    stopped = {"out": str(repository / "stopped"), **values}
    names = {}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Trainer, "_micro_batch", interrupted)
        miniature.execute(repository, method, names, **stopped)
    cells = miniature.code(repository, method)
    if again == "all cells":
        miniature.execute(repository, method, names, **stopped)
    else:
        for source in cells[-2:]:
            exec(source, names)
    assert_same(repository / "stopped", repository / "whole")


SLOW_JUDGE = """\
def judge(x):
    import pathlib, time

    pathlib.Path("judging").touch()
    time.sleep(0.3)"""
SLOW_RECORD = """\
graded = runs.grade(samples, judge)
import os, pathlib, time

replace = os.replace


def slowly(*paths):
    pathlib.Path("recording").touch()
    time.sleep(0.2)
    replace(*paths)


os.replace = slowly"""
PRESET = {"counts": "long", "ladder": "sweep"}


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
def test_killed_at_twenty_five_random_moments(repository, method):
    """Of training, sampling, grading and writing the record: every file and the record end as
    undisturbed ones."""
    miniature.replace(repository, method, "def judge(x):", SLOW_JUDGE)
    miniature.replace(repository, method, "graded = runs.grade(samples, judge)", SLOW_RECORD)
    judging, recording = repository / "judging", repository / "recording"
    run = repository / "killed"
    whole, killed = (
        ["notebook", method, {"preset": PRESET[method], "out": str(repository / name)}]
        for name in ("whole", "killed")
    )
    miniature.finish(repository, miniature.start(repository, *whole))
    judging.unlink()
    chance, reached = random.Random(7), []

    def trained():
        """Checkpoints written by all members, pruned ones among them."""
        folders = {path.parent for path in run.rglob("checkpoints/*.safetensors")}
        newest = [int(max(place.glob("*.safetensors")).stem) for place in folders]
        return sum(newest) // (12 * presets.resolve(method, PRESET[method]).checkpoint_every)

    def drawn():
        return len(list(run.rglob("samples/*/*.safetensors")))

    def wait(count, least):
        while count() < least:
            assert process.is_alive(), (repository / "log").read_text()
            time.sleep(0.001)

    for stage in ["training"] * 8 + ["sampling"] * 7 + ["grading"] * 5 + ["recording"] * 5:
        judging.unlink(missing_ok=True)
        recording.unlink(missing_ok=True)
        count, more = {
            "training": (trained, chance.randint(0, 2)),
            "sampling": (drawn, chance.randint(1, 8)),
            "grading": (judging.exists, True),
            "recording": (recording.exists, True),
        }[stage]
        least = count() + more
        process = miniature.start(repository, *killed)
        wait(count, least)
        time.sleep(chance.uniform(0, 0.3 if stage == "grading" else 0.02))
        miniature.kill(process)
        judged = "recording" if recording.exists() else "grading" if judging.exists() else ""
        reached.append(judged or ("sampling" if drawn() else "training"))
    miniature.finish(repository, miniature.start(repository, *killed))
    assert min(map(reached.count, ("training", "sampling", "grading", "recording"))) >= 4, reached
    assert_same(run, repository / "whole")


def assert_agree(run, other, tolerance=1e-6):
    """Weights, averages, multipliers and whatever else a checkpoint holds, and what was logged."""
    found, others = tensors(run), tensors(other)
    assert found.keys() == others.keys()
    for name, value in found.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=tolerance, msg=name)
    for line, other_line in zip(metrics(run), metrics(other), strict=True):
        assert other_line.pop("measures") == pytest.approx(line.pop("measures"), rel=1e-6)
        assert other_line == pytest.approx(line, rel=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_one_process_two_and_micro_batches_agree(repository, method):
    """To 1e-6 after 50 steps, the multiplier included; so does what two began and one ended.
    The measured draws show that all saw the same noise."""
    values = {"steps": 50, "log_every": 10, "checkpoint_every": 25, "lr": 1e-3}
    runs = {}
    for name, more in {"one": {}, "two": {}, "three": {"accumulate": 3}}.items():
        spec = presets.resolve(method, "tiny", {**values, **more})
        runs[name] = folder.open_run(repository / name, spec)
        folder.unlock(runs[name])

    def work(stage, name):
        stage(runs[name])
        folder.unlock(runs[name])

    miniature.finish(repository, *miniature.start_two(repository, "train", runs["two"]))
    work(jobs.train_folder, "one")
    work(jobs.train_folder, "three")
    assert_agree(runs["one"], runs["two"])
    assert_agree(runs["one"], runs["three"])
    if method == "counts":
        assert tensors(runs["one"])["state/dual/value"] > 0.1
    (newest,) = (runs["two"] / "checkpoints").glob(f"{50 * 12:012d}.*")
    newest.unlink()
    work(jobs.train_folder, "two")
    assert checkpoint.newest(runs["two"] / "checkpoints").samples == 50 * 12
    assert_agree(runs["one"], runs["two"])

    miniature.finish(repository, *miniature.start_two(repository, "sample", runs["one"]))
    alone = repository / "alone"
    (runs["one"] / "samples").rename(alone)
    work(jobs.sample_folder, "one")
    drawn = {p.name: checkpoint.load(p) for p in alone.rglob("*.safetensors")}
    again = {p.name: checkpoint.load(p) for p in (runs["one"] / "samples").rglob("*.safetensors")}
    assert drawn.keys() == again.keys() and len(drawn) == 3
    assert all(torch.equal(drawn[n].tensors["x"], again[n].tensors["x"]) for n in drawn)


def test_the_seconds_of_a_record_are_those_of_each_stage(repository):
    miniature.replace(
        repository,
        "ladder",
        "net.stem.weight.div_(net.stem.weight.norm())",
        "__import__('time').sleep(0.05)",
    )
    miniature.replace(
        repository,
        "ladder",
        "def draw(numbers, nfe):",
        "def draw(numbers, nfe):\n    __import__('time').sleep(0.2)",
    )
    miniature.replace(
        repository,
        "ladder",
        "def judge(x):",
        "def judge(x):\n    __import__('time').sleep(0.7)",
    )
    run = repository / "run"
    begun = time.monotonic()
    miniature.execute(repository, "ladder", {}, preset="tiny", out=str(run))
    wall = time.monotonic() - begun
    record = records.read_record(run)
    seconds = (record.training_seconds, record.sampling_seconds, record.grading_seconds)
    assert all(took >= least for took, least in zip(seconds, (0.3, 0.6, 0.7), strict=True))
    assert sum(seconds) <= wall
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert record.training_seconds == last["seconds"]
    (run / "record.json").unlink()
    miniature.execute(repository, "ladder", {}, preset="tiny", out=str(run))
    again = records.read_record(run)
    assert (again.training_seconds, again.sampling_seconds) == seconds[:2]  # nothing done anew


def test_a_loss_that_is_a_module_is_moved_and_neither_trained_nor_saved(tmp_path):
    """A frozen reference network."""

    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.moved = nn.Linear(2, 2), []

        def _apply(self, function, recurse=True):
            self.moved.append(function(torch.zeros(1)).device)
            return super()._apply(function, recurse)

        def forward(self, net, batch, source):
            return (net(batch.x) - self.teacher(batch.x)).square().mean(1)

    torch.manual_seed(0)
    loss, net = Distilled(), nn.Linear(2, 2)
    before = loss.teacher.weight.clone()
    points = ArrayDataset(torch.randn(20, 2, generator=rng.generator(0, "points")), levels=None)
    spec = RunSpec(method="none", preset="test", dataset="points", steps=3, batch=4, lr=1e-2)
    trainer = training.Trainer(Task(net, loss, points), spec, tmp_path)
    list(trainer)
    assert loss.moved == [trainer.device]
    assert torch.equal(loss.teacher.weight, before)
    assert not any("teacher" in name for name in tensors(tmp_path))
