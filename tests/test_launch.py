"""Several processes on one machine: how they meet, who is kept out, what is said at the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniature
import psutil
import pytest
import torch

from diffbook_lib.runs import checkpoint, folder, jobs, launch, presets
from diffbook_lib.runs.folder import FolderError
from diffbook_lib.runs.launch import RunFailed

ENDLESS = {"steps": 10_000_000, "checkpoint_every": 500, "log_every": 500}
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
LISTEN = "0A"


@pytest.fixture
def repository(tmp_path):
    with miniature.opened(tmp_path) as root:
        yield root


def prepared(root, name, preset="tiny", **changes):
    """A run folder in which nobody works yet."""
    run = folder.open_run(root / name, presets.resolve("counts", preset, changes))
    folder.unlock(run)
    return run


def listening(processes):
    """The addresses, as /proc/net writes them, at which these processes listen."""
    inodes = set()
    for process in processes:
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(file))
            except FileNotFoundError:
                continue
    rows = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        rows += [line.split() for line in lines]
    return {
        row[1].split(":")[0] for row in rows if row[3] == LISTEN and f"socket:[{row[9]}]" in inodes
    }


def until(condition, process, log):
    """Wait for something that a process brings about."""
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    return found


@pytest.fixture
def two(repository):
    """A process that trains endlessly with two workers, once it has a checkpoint: the process,
    its workers, the run folder, what it says."""
    run, log = prepared(repository, "two", **ENDLESS), repository / "log"
    script = (
        "import sys; from pathlib import Path; from diffbook_lib.__main__ import main\n"
        "import diffbook_lib.runs.jobs as jobs\n"
        "from diffbook_lib.runs import folder, launch\n"
        "def train_folder(run): folder.lock(run); launch.torchrun(run, 2, 'train')\n"
        "jobs.train_folder = train_folder\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "train", str(run)]
    environment = miniature.environment(repository)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, cwd=repository
        )
    until(lambda: list(run.glob("checkpoints/*[1-9]*.safetensors")), process, log)
    (launcher,) = psutil.Process(process.pid).children()
    workers = [child for child in launcher.children() if "train" in child.cmdline()]
    yield process, launcher, workers, run, log
    process.kill()
    process.wait()


@pytest.mark.slow
def test_while_two_processes_train(two, repository):
    """Nobody listens beyond the loopback interface; a second start says who works there and
    changes nothing; a killed worker is reported in a sentence and nothing of the meeting stays."""
    process, launcher, workers, run, log = two
    assert len(workers) == 2
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert set(workers) < set(everyone)
    assert listening(everyone) <= LOOPBACK
    assert any((run / ".rendezvous").iterdir())

    second = miniature.start(repository, "train", run, log=repository / "second")
    second.join()
    said = (repository / "second").read_text()
    assert second.exitcode == 2, said
    assert said == (
        f"error: process {process.pid} works in {run}; wait until it ends, or shut down its "
        "notebook\n"
    )
    workers[1].kill()
    assert process.wait() == 1
    said = log.read_text().strip().splitlines()[-1]
    assert said == (
        f"error: train with 2 processes in {run} failed: process {workers[1].pid} was ended by "
        "SIGKILL, perhaps for want of memory; the same command continues from the last checkpoint"
    )
    assert list((run / ".rendezvous").iterdir()) == []
    assert not workers[0].is_running() and not launcher.is_running()
    steps = [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["starter", "launcher"])
def test_all_end_with_the_one_that_is_killed(two, repository, killed):
    """So that a second start finds neither a trainer at work nor a lock without an owner."""
    process, launcher, workers, run, _ = two
    os.kill({"starter": process.pid, "launcher": launcher.pid}[killed], signal.SIGKILL)
    process.wait()
    psutil.wait_procs([launcher, *workers])
    before = checkpoint.newest(run / "checkpoints").samples
    folder.lock(run)
    folder.unlock(run)
    assert checkpoint.newest(run / "checkpoints").samples == before


@pytest.mark.slow
def test_torchrun_on_the_command_line_trains_what_one_process_trains(repository):
    """What the README tells: without a notebook and without an inherited lock; and the files
    through which they met do not keep the next ones from meeting."""
    run, alone = prepared(repository, "two"), prepared(repository, "one")
    command = launch.command(run, 2, "train")
    done = subprocess.run(
        command,
        env=miniature.environment(repository),
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    jobs.train_folder(alone)
    folder.unlock(alone)
    ours, theirs = (checkpoint.newest(r / "checkpoints").tensors for r in (run, alone))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_failing_processes_are_reported(repository, capsys):
    """With what they said, without torchrun's own log."""
    with pytest.raises(RunFailed, match=r"no spec\.json") as error:
        launch.torchrun(repository, 2, "train")
    assert "torch/distributed" not in str(error.value)
    assert list((repository / ".rendezvous").iterdir()) == []


def test_a_batch_that_two_processes_cannot_share_is_refused(repository):
    run = prepared(repository, "odd", batch=9)
    said = miniature.finish(repository, *miniature.start_two(repository, "train", run), code=2)
    assert "batch is 9; it must be a multiple of 2" in said and "Traceback" not in said


def test_a_second_start_says_who_works_there(repository, monkeypatch):
    """In the notebook, in training and in sampling alike."""
    run = prepared(repository, "run", **ENDLESS)
    process = miniature.start(repository, "train", run)
    while not list(run.glob("checkpoints/*[1-9]*.safetensors")):
        assert process.is_alive(), (repository / "log").read_text()
        time.sleep(0.001)
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    spec = folder.read_spec(run)
    starts = [
        lambda: jobs.train_folder(run),
        lambda: jobs.sample_folder(run),
        lambda: folder.open_run(run, spec),
        lambda: jobs.run("counts", "tiny", ENDLESS, run),
    ]
    for start in starts:
        with pytest.raises(FolderError, match=f"process {process.pid} works in {run}"):
            start()
    miniature.kill(process)
    folder.open_run(run, spec)
    assert (run / ".lock").read_text() == str(os.getpid())
    folder.unlock(run)
