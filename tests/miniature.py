"""A miniature of the repository: a run notebook and presets small enough for tests."""

import json
from pathlib import Path

PARAMETERS = """\
out = ""
processes = 1
preset = "tiny"
seed = 0
dataset = "mixture9"
steps: int = 6  # optimiser steps
batch = 8
accumulate = 1
lr = 1.0e-2
mixed_score = True
network = "mlp"
width = 8
depth = 1
checkpoint_every = 2
log_every = 2
"""
START = """\
from diffbook_lib import presets, records

spec = presets.collect("cld", globals())
run = records.open_run(out, spec)
"""
DATA = """\
from diffbook_lib import data

dataset = data.load(spec.dataset)
"""
NETWORK = """\
import torch
from diffbook_lib.nets.mlp import MLP

torch.manual_seed(spec.seed)
net = MLP(2, 2, spec.width, spec.depth)
example = (torch.zeros(1, 2), torch.ones(1))
"""
METHOD = """\
from diffbook_lib import rng


def loss(net, batch, generator):
    noise = rng.normal(batch.x.shape, generator)
    return (net(batch.x + noise, torch.ones(len(noise))) - noise).square().sum(1)
"""
TRAIN = """\
from diffbook_lib import jobs, train

if processes > 1:
    jobs.torchrun(run, processes)
else:
    last = train.watch(train.train(net, loss, dataset, spec, run), spec)
"""
RECORD = """\
print("weights are", sum(float(p.sum()) for p in net.parameters()))
records.write_record(
    run, spec, [records.Metric(name="nothing", value=1.5, samples=8, seed=0)], seconds=1.0
)
"""


def write(folder: Path, train: str = TRAIN) -> Path:
    """nbs/cld.ipynb and its presets `tiny` and `small` under `folder`."""
    cells = [
        cell(PARAMETERS, "parameters"),
        cell(START),
        cell(DATA, "build", "data"),
        cell(NETWORK, "build", "network"),
        cell(METHOD, "build"),
        cell(train),
        cell(RECORD),
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    presets = folder / "nbs" / "presets" / "cld"
    presets.mkdir(parents=True)
    (folder / "nbs" / "cld.ipynb").write_text(json.dumps(notebook))
    (presets / "tiny.yaml").write_text("# Nearly nothing\npreset: tiny\n")
    (presets / "small.yaml").write_text("# A little more\npreset: small\nsteps: 40\nlr: 1.0e-3\n")
    return folder


def cell(source: str, *tags: str) -> dict:
    """A code cell as it stands in a notebook's JSON."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": f"cell-{abs(hash(source)) % 10**8}",
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
