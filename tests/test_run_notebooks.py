"""The run notebooks of nbs/ with their presets, executed for real at smoke size."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffbook_lib.runs import checkpoint, jobs, presets, records
from diffbook_lib.specs import SpecError

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


@pytest.mark.slow
def test_a_smoke_run_leaves_a_valid_record(smoke):
    method, folder = smoke
    record = records.read_record(folder)
    assert record.spec == presets.resolve(method, "smoke")
    assert record.results and all(metric.samples for metric in record.results)
    for name in ("notebook.ipynb", "metrics.jsonl", "figures/samples.png"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "samples").iterdir())


@pytest.mark.slow
def test_a_finished_run_is_complete(smoke):
    method, folder = smoke
    before = (folder / "record.json").stat().st_mtime_ns
    assert "complete" in execute(*RUN, method, "smoke", "--out", folder)
    assert (folder / "record.json").stat().st_mtime_ns == before


def outcome(folder: Path) -> tuple[dict, list]:
    """Every tensor of the last checkpoint and of the samples, and the measured figures."""
    tensors = dict(checkpoint.newest(folder / "checkpoints").tensors)
    for file in sorted((folder / "samples").rglob("*.safetensors")):
        tensors[str(file.relative_to(folder))] = checkpoint.load(file).tensors["x"]
    return tensors, list(records.read_record(folder).results)


@pytest.mark.slow
def test_a_run_killed_twenty_five_times_ends_with_the_same_bits(smoke, tmp_path):
    """At random moments of starting, training, sampling and grading."""
    method, folder = smoke
    command = [*RUN, method, "smoke", "--out", str(tmp_path / "run")]
    chance, kills, longest = random.Random(5), 0, 4.0
    while kills < 25:
        process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=chance.uniform(0, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        if (tmp_path / "run" / "record.json").exists():  # too late: again from the start
            shutil.rmtree(tmp_path / "run")
        longest = longest * 1.15 if longest < 15 else longest
    execute(*command)
    (ours, results), (theirs, expected) = outcome(tmp_path / "run"), outcome(folder)
    assert ours.keys() == theirs.keys() and results == expected
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_papermill_alone_runs_a_preset_and_refuses_a_mistyped_parameter(method, tmp_path):
    preset = NBS / "presets" / method / "smoke.yaml"
    notebook, out = NBS / f"{method}.ipynb", tmp_path / "out.ipynb"
    papermill(notebook, out, "-f", preset, "-p", "out", tmp_path / "run")
    assert records.read_record(tmp_path / "run").spec == presets.resolve(method, "smoke")
    said = papermill(notebook, out, "-f", preset, "-p", "stesp", "3", code=1)
    assert "did you mean 'steps'" in said


@pytest.mark.parametrize("method", METHODS)
def test_every_door_gives_the_same_specification(method, tmp_path):
    """papermill with -p and with -f, the command line, and two lines written into the notebook."""
    changes, file = {"steps": 100, "seed": 3}, NBS / "presets" / method / "smoke.yaml"
    start = cells_until_the_specification(method)
    found = [presets.resolve(method, "smoke", changes)]
    for given in (
        {"preset": "smoke", **changes},
        {**yaml.safe_load(file.read_text()), **changes},
        {"preset": "smoke", "steps": 100, "seed": 3},
    ):
        names = {**given, "out": str(tmp_path / str(len(found))), "processes": 1}
        exec(start, names)
        found.append(names["spec"])
    assert all(spec == found[0] for spec in found)
    plan = jobs.prepare(method, "smoke", changes)
    assert plan.spec == found[0]
    with pytest.raises(SpecError, match="did you mean 'steps'"):
        exec(start, {"preset": "smoke", "stepps": 3, "out": str(tmp_path / "no"), "processes": 1})


def cells_until_the_specification(method: str) -> str:
    """The source of the cell that makes `spec`."""
    cells = json.loads((NBS / f"{method}.ipynb").read_text())["cells"]
    return next(s for c in cells if "runs.collect" in (s := "".join(c["source"])))


FEW = {"steps": 30, "samples": 60, "nfe": 5, "sweep": "{}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset, changes",
    [
        ("digits", {"bound_images": 2, "table": "{sampler: [em, sscs2], nfe: [4]}"}),
        ("digits", {"bound_images": 0, "objective": "dsm", "sampler": "ode", "table": "{}"}),
        (
            "digits-vpsde",
            {
                "bound_images": 2,
                "table": "{grid: [linear], sampler: [ancestral, ddim, heun]}",
                "sweep": "{seed: [0, 1]}",
            },
        ),
        (
            "digits",
            {
                "bound_images": 0,
                "network": "ncsnpp",
                "attention": [4],
                "fir": True,
                "flip": True,
                "table": "{}",
            },
        ),
    ],
)
def test_cld_on_images_a_few_steps(preset, changes, tmp_path):
    """The image branches of the notebook: networks, processes, samplers, measures."""
    changes = {**FEW, **changes}
    parameters = [part for name, value in changes.items() for part in ("-p", name, str(value))]
    execute(*RUN, "cld", preset, *parameters, "--out", tmp_path / "run")
    record = records.read_record(tmp_path / "run")
    members, cells = len(record.spec.members()), record.spec.cells()
    assert len(record.select("Fréchet distance")) == members * len(cells)
    assert len(record.select("Distance to the nearest training image")) == members
    for at in cells:
        assert len(record.select("Fréchet distance", **at)) == members
    bits = [found for found in record.results if found.name.startswith("Bits per dimension")]
    assert len(bits) == (members if record.spec.model_dump()["bound_images"] else 0)
    assert all(found.details["nfe"] > 0 for found in record.select("Fréchet distance"))
    assert record.training_seconds > 0 and record.sampling_seconds > 0
    assert record.grading_seconds > 0 and len(record.spreads) == (
        0 if members == 1 else len(record.results) // members
    )


@pytest.mark.slow
def test_cld_learns_pictures_of_ones_own(tmp_path):
    """A folder of somebody's pictures; one that changed since is refused."""
    own, chance = tmp_path / "own", random.Random(1)
    own.mkdir()
    for i in range(40):
        size = (chance.randint(20, 40), chance.randint(20, 40))
        Image.new("RGB", size, tuple(chance.randrange(256) for _ in range(3))).save(
            own / f"{i}.png"
        )
    given = {**FEW, "bound_images": 0, "table": "{}", "dataset": "folder", "path": own, "size": 8}
    parameters = [part for name, value in given.items() for part in ("-p", name, str(value))]
    command = [*RUN, "cld", "digits", *parameters, "--out", tmp_path / "run"]
    execute(*command)
    record = records.read_record(tmp_path / "run")
    assert record.spec.data_hash and record.spec.path == str(own)
    Image.new("RGB", (30, 30), "red").save(own / "0.png")
    said = execute(*command, code=2)
    assert "data_hash" in said and "changed since" in said and "Traceback" not in said


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_has_a_specification(method):
    for name in presets.names(method):
        spec = presets.resolve(method, name)
        assert (spec.method, spec.preset) == (method, name)
