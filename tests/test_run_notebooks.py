"""The run notebooks of nbs/ with their presets, executed for real at smoke size."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffbook_lib import checkpoint, presets, records

NBS = Path(__file__).parents[1] / "nbs"
METHODS = sorted(path.stem for path in NBS.glob("*.ipynb"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-m", "diffbook_lib", "run"]


def execute(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def papermill(*arguments: str | Path, code: int = 0) -> str:
    return execute(sys.executable, "-m", "papermill", "--no-progress-bar", *arguments, code=code)


@pytest.fixture(scope="module", params=METHODS)
def smoke(request, tmp_path_factory):
    """The finished smoke run of a method."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    execute(*RUN, request.param, "smoke", "--out", folder)
    return request.param, folder


def test_a_smoke_run_leaves_a_valid_record(smoke):
    method, folder = smoke
    record = records.read_record(folder)
    assert record.spec == presets.resolve(method, "smoke")
    assert record.results and all(metric.samples for metric in record.results)
    for name in ("notebook.ipynb", "metrics.jsonl", "samples.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "figures").iterdir())


def test_a_finished_run_is_complete(smoke):
    method, folder = smoke
    before = (folder / "record.json").stat().st_mtime_ns
    assert "complete" in execute(*RUN, method, "smoke", "--out", folder)
    assert (folder / "record.json").stat().st_mtime_ns == before


def test_a_killed_run_continues_to_the_same_bits(smoke, tmp_path):
    method, folder = smoke
    command = [*RUN, method, "smoke", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(tmp_path.glob("run/checkpoints/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    execute(*command)
    ours, theirs = (checkpoint.newest(f / "checkpoints") for f in (tmp_path / "run", folder))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(ours.tensors[name].equal(theirs.tensors[name]) for name in ours.tensors)


@pytest.mark.parametrize("method", METHODS)
def test_papermill_alone_runs_a_preset_and_refuses_a_mistyped_parameter(method, tmp_path):
    preset = NBS / "presets" / method / "smoke.yaml"
    notebook, out = NBS / f"{method}.ipynb", tmp_path / "out.ipynb"
    papermill(notebook, out, "-f", preset, "-p", "out", tmp_path / "run")
    assert records.read_record(tmp_path / "run").spec == presets.resolve(method, "smoke")
    said = papermill(notebook, out, "-f", preset, "-p", "stesp", "3", code=1)
    assert "did you mean 'steps'" in said


FEW = {"steps": 30, "samples": 60, "nfe": 5, "table_nfes": [5], "table_grids": ["quadratic"]}


@pytest.mark.parametrize(
    "preset, changes",
    [
        ("digits", {"bound_images": 2}),
        ("digits", {"bound_images": 0, "objective": "dsm", "sampler": "ode", "table_nfes": []}),
        ("digits-vpsde", {}),
        (
            "digits",
            {"bound_images": 0, "network": "ncsnpp", "attention": [4], "fir": True, "flip": True},
        ),
    ],
)
def test_cld_on_images_a_few_steps(preset, changes, tmp_path):
    """The image branches of the notebook: networks, processes, samplers, measures."""
    changes = {**FEW, **changes}
    parameters = [part for name, value in changes.items() for part in ("-p", name, str(value))]
    execute(*RUN, "cld", preset, *parameters, "--out", tmp_path / "run")
    record = records.read_record(tmp_path / "run")
    names = [metric.name for metric in record.results]
    assert "Fréchet distance" in names
    table = [name for name in names if name.startswith("Fréchet distance, ")]
    assert len(table) == len(record.spec.table_samplers) * len(changes["table_nfes"])
    assert ("Bits per dimension, upper bound" in names) == bool(record.spec.bound_images)
    assert all(metric.details["nfe"] > 0 for metric in record.results)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_has_a_specification(method):
    for name in presets.names(method):
        spec = presets.resolve(method, name)
        assert (spec.method, spec.preset) == (method, name)
