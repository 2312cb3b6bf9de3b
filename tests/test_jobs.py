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
from diffbook_lib.jobs import RunFailed, Submission
from diffbook_lib.presets import PresetError
from diffbook_lib.records import SpecMismatch

from diffbook_lib import checkpoint, jobs, presets, records

SLOW = """\
import time
from diffbook_lib import train

for last in train.train(net, loss, dataset, spec, run):
    print("at step", last.step, flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    return miniature.write(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository with the finished run cld tiny."""
    folder = miniature.write(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFBOOK_ROOT", str(folder))
        jobs.run("cld", "tiny")
    return folder


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.newest(run / "checkpoints").tensors


def reference(folder, preset, **overrides) -> dict[str, torch.Tensor]:
    """The tensors that the same run ends with, trained here without a notebook."""
    spec = presets.resolve("cld", preset, overrides)
    jobs.train_folder(records.start_run(folder, spec))
    return weights(folder)


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_a_run_leaves_what_it_should(finished, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(finished))
    run = finished / "runs" / "cld-tiny"
    assert records.read_record(run).spec == presets.resolve("cld", "tiny")
    assert (run / "metrics.jsonl").exists() and any((run / "checkpoints").iterdir())
    executed = json.loads((run / "notebook.ipynb").read_text())
    assert "weights are" in json.dumps(executed) and not (run / "notebook.partial.ipynb").exists()
    assert_same(weights(run), reference(finished / "again", "tiny"))


def test_a_complete_run_says_so_and_starts_nothing(finished, monkeypatch, capsys):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(finished))
    monkeypatch.setattr(jobs, "_execute", None)
    assert jobs.run("cld", "tiny") == finished / "runs" / "cld-tiny"
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "cdl"}, "did you mean 'cld'"),
        ({"preset": "tinny"}, "did you mean 'tiny'"),
        ({"preset": "../tiny"}, "refused"),
        ({"overrides": {"stepz": 3}}, "did you mean 'steps'"),
        ({"overrides": {"steps": -3}}, "steps is -3"),
        ({"overrides": {"lr": "1e-3"}}, r"write 1\.0e-3"),
        ({"overrides": {"batch": 0}}, "batch is 0"),
        ({"overrides": {"preset": "small"}}, "stays 'tiny'"),
        ({"overrides": {"out": "x"}}, "--out"),
        ({"overrides": {"dataset": "mixtur9"}}, "did you mean 'mixture9'"),
        ({"overrides": {"dataset": "digits", "batch": 5000}}, "batch is 5000, but digits has 1500"),
        ({"processes": 3}, "processes is 3"),
        ({"processes": 0}, "processes is 0"),
        ({"where": "moon"}, "where is 'moon'"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(repository, arguments, words):
    with pytest.raises(ValueError, match=words):
        jobs.run(**{"method": "cld", "preset": "tiny", **arguments})
    assert not (repository / "runs").exists()


def test_a_folder_with_another_run_is_refused(repository):
    plan = jobs.prepare("cld", "tiny")
    records.start_run(plan.folder, plan.spec)
    with pytest.raises(SpecMismatch, match="steps: 6 -> 7"):
        jobs.run("cld", "tiny", {"steps": 7})


def test_a_failing_cell_is_named(repository):
    (repository / "nbs" / "cld.ipynb").unlink()
    presets_folder = repository / "nbs" / "presets"
    presets_folder.rename(repository / "aside")
    (repository / "nbs").rmdir()
    miniature.write(repository, train="print('so far')\nraise ValueError('no data today')\n")
    with pytest.raises(RunFailed, match=r"cell \d+ of cld\.ipynb failed .*no data today"):
        jobs.run("cld", "tiny")
    assert "so far" in (repository / "runs" / "cld-tiny" / "notebook.ipynb").read_text()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    miniature.write(tmp_path, train=SLOW)
    command = [sys.executable, "-m", "diffbook_lib", "run", "cld", "small", "-p", "lr", "1e-2"]
    run = tmp_path / "runs" / "cld-small"
    process = subprocess.Popen(command)
    while not list((run / "checkpoints").glob("*.safetensors")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)  # its kernel notices a moment later
    process.wait()
    assert not (run / "record.json").exists() and not (run / "notebook.ipynb").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert_same(weights(run), reference(tmp_path / "undisturbed", "small", lr=1e-2))


def test_two_processes_train_what_one_does(repository, capsys):
    spec = presets.resolve("cld", "tiny")
    run = records.open_run(repository / "two", spec)
    jobs.torchrun(run, 2)
    assert "samples/s" in capsys.readouterr().out
    alone = reference(repository / "one", "tiny")
    assert_same(weights(run), alone, rtol=1e-4, atol=1e-6)


def test_failing_processes_are_reported(repository, capsys):
    with pytest.raises(RunFailed, match=r"no spec\.json"):
        jobs.torchrun(repository, 2)


def test_build_needs_the_cells_it_looks_for(repository):
    with pytest.raises(PresetError, match="no cell tagged 'sampling'"):
        presets.build(presets.resolve("cld", "tiny"), "sampling")
    notebook = repository / "nbs" / "cld.ipynb"
    notebook.write_text(notebook.read_text().replace("def loss(", "def loss_function("))
    run = records.start_run("", presets.resolve("cld", "tiny"))
    with pytest.raises(PresetError, match="define no loss"):
        jobs.train_folder(run)


def test_training_needs_no_notebook_packages(repository):
    run = records.start_run("", presets.resolve("cld", "tiny"))
    blocked = "papermill", "nbformat", "nbclient", "IPython", "jupyter_client"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        f"from diffbook_lib import jobs; jobs.train_folder({str(run)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert checkpoint.newest(run / "checkpoints").samples == 48


def test_a_submission_travels_and_comes_back_as_itself():
    pytest.importorskip("submitit")
    submission = Submission("cld", "tiny", {"steps": 9}, "/tmp/x", 2)
    copy = pickle.loads(pickle.dumps(submission))
    assert copy == submission and copy.checkpoint().function == submission


@pytest.mark.slow
def test_a_submitted_run_is_requeued_at_its_time_limit(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    psutil = pytest.importorskip("psutil")
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    miniature.write(tmp_path, train=SLOW)
    plan = jobs.prepare("cld", "small")
    job = jobs.submit(Submission("cld", "small", {}, str(plan.folder)), cluster="local")
    end = time.monotonic() + 60
    while not list((plan.folder / "checkpoints").glob("*.safetensors")):
        assert time.monotonic() < end, job.stderr()
        time.sleep(0.1)
    for task in psutil.Process(job._process.pid).children():
        task.send_signal(signal.SIGUSR2)  # what Slurm sends before the limit
    assert job.result() == str(plan.folder)
    assert "Requeued job" in job.stdout() + job.stderr()
    assert records.is_complete(plan.folder, plan.spec)
    assert os.path.getsize(plan.folder / "notebook.ipynb")
