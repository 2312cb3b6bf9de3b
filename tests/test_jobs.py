"""Starting runs: what is refused before anything starts, what a run leaves, what Slurm needs."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import miniature
import pytest
import torch

from diffbook_lib.runs import checkpoint, folder, jobs, presets, records
from diffbook_lib.runs.folder import SpecMismatch
from diffbook_lib.runs.jobs import Submission
from diffbook_lib.runs.launch import RunFailed
from diffbook_lib.specs import SpecError


@pytest.fixture
def repository(tmp_path):
    with miniature.opened(tmp_path) as root:
        yield root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository with the finished run counts tiny."""
    with miniature.opened(tmp_path_factory.mktemp("finished")) as root:
        jobs.run("counts", "tiny")
        yield root


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.newest(run / "checkpoints").tensors


def reference(run, preset, **changes) -> dict[str, torch.Tensor]:
    """The tensors that the same run ends with, trained here without a notebook."""
    jobs.train_folder(folder.open_run(run, presets.resolve("counts", preset, changes)))
    return weights(run)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.slow
def test_a_run_leaves_what_it_should(finished):
    run = finished / "runs" / "counts-tiny"
    assert records.read_record(run).spec == presets.resolve("counts", "tiny")
    assert (run / "metrics.jsonl").exists() and any((run / "checkpoints").iterdir())
    assert len(list((run / "samples").rglob("*.safetensors"))) == 3
    executed = json.loads((run / "notebook.ipynb").read_text())
    assert "complete: 100%" in json.dumps(executed)
    assert not (run / "notebook.partial.ipynb").exists()
    assert_same(weights(run), reference(finished / "again", "tiny"))


@pytest.mark.slow
def test_a_complete_run_says_so_and_starts_nothing(finished, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "_execute", None)
    assert jobs.run("counts", "tiny") == finished / "runs" / "counts-tiny"
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "conts"}, "did you mean 'counts'"),
        ({"preset": "tinny"}, "did you mean 'tiny'"),
        ({"preset": "../tiny"}, "refused"),
        ({"changes": {"stepz": 3}}, "did you mean 'steps'"),
        ({"changes": {"width": 3}}, "unknown parameter 'width'"),
        ({"changes": {"steps": -3}}, "steps is -3"),
        ({"changes": {"lr": "1e-3"}}, r"write 1\.0e-3"),
        ({"changes": {"batch": 0}}, "batch is 0"),
        ({"changes": {"accumulate": 5}}, "batch is 12, which accumulate = 5 does not divide"),
        ({"changes": {"preset": "long"}}, "preset is 'long'; it names the preset, here 'tiny'"),
        ({"changes": {"out": "x"}}, "--out"),
        ({"changes": {"dataset": "digitz"}}, "did you mean 'digits'"),
        ({"processes": 5}, "processes is 5"),
        ({"processes": 0}, "processes is 0"),
        ({"where": "moon"}, "where is 'moon'"),
        ({"method": "ladder", "changes": {"sweep": {"seeed": [1]}}}, "sweep names seeed"),
        ({"method": "ladder", "changes": {"sweep": {"width": [8, 0]}}}, "sweep: width is 0"),
        (
            {"method": "ladder", "changes": {"sweep": {"batch": [12, 9]}}, "processes": 2},
            "must divide the batch of 9",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_starts(repository, arguments, words):
    with pytest.raises(ValueError, match=words):
        jobs.run(**{"method": "counts", "preset": "tiny", **arguments})
    assert not (repository / "runs").exists()


def test_a_folder_with_another_run_is_refused(repository):
    plan = jobs.prepare("counts", "tiny")
    folder.open_run(plan.folder, plan.spec)
    with pytest.raises(SpecMismatch, match=r"(?s)steps: 6 -> 7.*--out"):
        jobs.run("counts", "tiny", {"steps": 7}, plan.folder)
    folder.unlock(plan.folder)


@pytest.mark.slow
def test_a_failing_cell_is_named(repository):
    miniature.replace(
        repository, "counts", miniature.TRAIN, "print('so far')\nraise ValueError('no data today')"
    )
    with pytest.raises(RunFailed, match=r"cell \d+ of counts\.ipynb failed .*no data today"):
        jobs.run("counts", "tiny")
    run = repository / "runs" / "counts-tiny"
    assert "so far" in (run / "notebook.ipynb").read_text()
    folder.open_run(run, presets.resolve("counts", "tiny"))  # nobody holds it any more
    folder.unlock(run)


@pytest.mark.slow
def test_a_notebook_that_writes_no_record_has_failed(repository):
    line = "runs.finish(run, spec, members, samples, graded, processes=processes)"
    miniature.replace(repository, "counts", line, "pass")
    with pytest.raises(RunFailed, match=r"counts\.ipynb came to its end but wrote no record"):
        jobs.run("counts", "tiny")


def test_missing_data_is_said_before_anything_is_written(repository, monkeypatch):
    miniature.replace(
        repository,
        "counts",
        "dataset = data.training(spec).as_levels()",
        "raise data.DataError('the archive is not there')",
    )
    monkeypatch.setattr(jobs, "_execute", None)
    with pytest.raises(ValueError, match="the archive is not there"):
        jobs.run("counts", "tiny")
    assert not (repository / "runs").exists()


def trees(process):
    """A process and all that it started, kernels in sessions of their own among them."""
    psutil = pytest.importorskip("psutil")
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.slow
def test_a_killed_notebook_continues_to_the_same_bits(repository):
    """Papermill alone is killed, then all its processes at once."""
    command = [sys.executable, "-m", "diffbook_lib", "run", "counts", "long", "-p", "lr", "1e-2"]
    run = folder.default_folder(presets.resolve("counts", "long", {"lr": 1e-2}))
    environment = miniature.environment(repository)
    for wanted, everyone in ((40, False), (100, True)):
        process = subprocess.Popen(command, env=environment, cwd=repository)
        while not any(int(p.stem) >= wanted * 12 for p in run.glob("checkpoints/*.safetensors")):
            time.sleep(0.01)
            assert process.poll() is None
        for one in trees(process) if everyone else [process]:
            one.send_signal(signal.SIGKILL)
        process.wait()
        assert not (run / "record.json").exists() and not (run / "notebook.ipynb").exists()
    subprocess.run(command, env=environment, cwd=repository, check=True)
    assert records.is_complete(run, presets.resolve("counts", "long", {"lr": 1e-2}))
    assert_same(weights(run), reference(repository / "undisturbed", "long", lr=1e-2))


def test_build_needs_the_cells_it_looks_for(repository):
    miniature.replace(repository, "counts", "task = runs.Task(", "job = runs.Task(")
    run = folder.open_run("", presets.resolve("counts", "tiny"))
    with pytest.raises(SpecError, match="define no task"):
        jobs.train_folder(run)
    folder.unlock(run)


@pytest.mark.slow
def test_training_and_sampling_need_no_notebook_packages(repository):
    run = folder.open_run("", presets.resolve("counts", "tiny"))
    folder.unlock(run)
    blocked = "papermill", "nbformat", "nbclient", "IPython", "jupyter_client", "matplotlib"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        f"from diffbook_lib.runs import jobs;"
        f"jobs.train_folder({str(run)!r}); jobs.sample_folder({str(run)!r})"
    )
    environment = miniature.environment(repository)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert checkpoint.newest(run / "checkpoints").samples == 72
    assert len(list((run / "samples").rglob("*.safetensors"))) == 3


def test_a_submission_travels_and_comes_back_as_itself():
    pytest.importorskip("submitit")
    submission = Submission("counts", "tiny", {"steps": 9}, "/tmp/x", 2)
    copy = pickle.loads(pickle.dumps(submission))
    assert copy == submission and copy.checkpoint().function == submission


@pytest.mark.slow
def test_a_submitted_run_is_requeued_at_its_time_limit(repository):
    pytest.importorskip("submitit")
    psutil = pytest.importorskip("psutil")
    changes = {"steps": 3000}
    plan = jobs.prepare("counts", "long", changes)
    job = jobs.submit(Submission("counts", "long", changes, str(plan.folder)), cluster="local")
    while not list((plan.folder / "checkpoints").glob("*[1-9]*.safetensors")):
        assert job._process.poll() is None, job.stderr()
        time.sleep(0.1)
    for task in psutil.Process(job._process.pid).children():
        task.send_signal(signal.SIGUSR2)  # what Slurm sends before the limit
    assert job.result() == str(plan.folder)
    assert "Requeued job" in job.stdout() + job.stderr()
    assert records.is_complete(plan.folder, plan.spec)
    assert os.path.getsize(plan.folder / "notebook.ipynb")
