"""Runs that are killed, starved of disk or handed damaged files end as undisturbed ones do."""

import json
import os
import random
import select
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from diffbook_lib.runs import checkpoint

pytestmark = pytest.mark.slow

TRAIN = """
import resource, sys, time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.runs import training
from diffbook_lib.runs.task import Task
from diffbook_lib.specs import RunSpec

folder, steps, every, limit = Path(sys.argv[1]), *map(int, sys.argv[2:5])
spec = RunSpec(
    method="none", preset="test", dataset="points", seed=3, steps=steps, batch=8, accumulate=2,
    lr=1e-2, schedule="cosine", warmup_steps=50, adam_beta2=0.99, ema=["power-0.1"],
    checkpoint_every=every, log_every=10,
)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))
dataset = ArrayDataset(torch.randn(100, 2), levels=None)

class Dual(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.tensor(0.0))

    def after_step(self, step, measures):
        self.value += 0.1 * (measures["loss"] - 0.5)

dual = Dual()

def loss(net, batch, generator):
    noise = rng.normal(batch.x.shape, generator)
    losses = (net(batch.x + noise) - batch.x).square().mean(1)
    return losses * (1 + dual.value), {"loss": losses}

ready = False
for event in training.events(Task(net, loss, dataset, {"dual": dual}), spec, folder):
    if not ready and not event.resumed:
        print(time.monotonic(), flush=True)
        ready = True
    if limit and event.step == 2 * every:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
save_file(dict(net.state_dict()), folder / "weights.safetensors")
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(tmp_path):
    """start(folder name, steps, checkpoint_every, limit of file sizes) -> the training process."""
    script = tmp_path / "script.py"
    script.write_text(TRAIN)

    def start(name, steps=200, every=50, limit=0):
        (tmp_path / name).mkdir(exist_ok=True)
        command = [sys.executable, script, tmp_path / name, steps, every, limit]
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    return start


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output + errors


def outcome(folder):
    """What must be the same bits: every tensor of the last checkpoint, the weights, the metrics."""
    tensors = checkpoint.newest(folder / "checkpoints").tensors
    weights = load_file(folder / "weights.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"], line["grad_norm"]) for line in lines]
    return tensors | weights, losses


def assert_same(folder, other):
    (tensors, losses), (others, other_losses) = outcome(folder), outcome(other)
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert losses == other_losses


def test_killed_at_twenty_random_moments(start, tmp_path):
    """Six times while Python starts and the checkpoint is read, the others while it trains, which
    writes a checkpoint every few milliseconds."""
    size = {"steps": 5000, "every": 20}
    begun = time.monotonic()
    whole = start("whole", **size)
    ready = float(whole.stdout.readline())
    finish(whole)
    starting, training = ready - begun, time.monotonic() - ready
    chance = random.Random(7)
    moments = ["starting"] * 6 + ["training"] * 14
    chance.shuffle(moments)
    reached = []
    for moment in moments:
        process = start("killed", **size)
        if moment == "training":
            process.stdout.readline()
            time.sleep(chance.uniform(0, training / 40))
        else:  # no later than its first step, however fast it starts this time
            select.select([process.stdout], [], [], chance.uniform(0, starting))
        process.kill()
        process.communicate()
        assert process.returncode == -9
        saved = checkpoint.newest(tmp_path / "killed" / "checkpoints")
        reached.append(saved.samples if saved else 0)
    assert reached == sorted(reached) and len(set(reached)) > 6
    assert reached[-1] < 5000 * 8, "the run ended before its last kill: make it longer"
    finish(start("killed", **size))
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and the same run left after 150 of 200 steps."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "script.py").write_text(TRAIN)
    command = [sys.executable, folder / "script.py", folder / "whole", "200", "50", "0"]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    shutil.copytree(folder / "whole", folder / "left")
    return folder


def newest(folder):
    return max((folder / "checkpoints").iterdir())


def test_truncated_checkpoint(start, tmp_path, runs):
    shutil.copytree(runs / "whole", tmp_path / "run")
    damaged = newest(tmp_path / "run")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said = finish(start("run"))
    assert f"{damaged} cannot be read" in said and "continuing from 000000001200" in said
    assert_same(tmp_path / "run", runs / "whole")


def test_flipped_byte_in_a_checkpoint(start, tmp_path, runs):
    shutil.copytree(runs / "whole", tmp_path / "run")
    damaged = newest(tmp_path / "run")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert f"{damaged} is damaged" in finish(start("run"))
    assert_same(tmp_path / "run", runs / "whole")


def test_no_whole_checkpoint_is_left(start, tmp_path, runs):
    shutil.copytree(runs / "whole", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    process = start("run")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "CheckpointError: no checkpoint of this run can be used" in errors
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("limit, file", [(6000, "0000001200.safetensors"), (1700, "metrics.jsonl")])
def test_full_disk(start, tmp_path, runs, limit, file):
    """After step 100 no file may grow beyond `limit` bytes; a checkpoint takes about 7400."""
    process = start("run", limit=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert "CheckpointError" in last and f"{file} could not be written: File too large" in last
    names = sorted(os.listdir(tmp_path / "run" / "checkpoints"))
    assert names == ["000000000400.safetensors", "000000000800.safetensors"]
    finish(start("run"))
    assert_same(tmp_path / "run", runs / "whole")
