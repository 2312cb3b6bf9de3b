"""The command line: what it prints, and how it ends."""

import json
import subprocess
import sys

import miniature
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from diffbook_lib import runs
from diffbook_lib.__main__ import main, value
from diffbook_lib.errors import Failed, Refused
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import checkpoint, folder, jobs, launch, presets, records


def call(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_values_are_read_back(thing):
    text = json.dumps(thing) if thing is None or isinstance(thing, bool) else repr(thing)
    assert value(text) == thing and type(value(text)) is type(thing)


def test_values_of_parameters():
    assert value("[1e-3, unet]") == [0.001, "unet"]
    assert value("{lr: [1e-3, 2]}") == {"lr": [0.001, 2]}
    assert value("1e-3") == 0.001 and value("-3") == -3 and value("True") is True
    assert value("[1, 2]") == [1, 2] and value("unet") == "unet"
    assert value("[power-0.1, classic-0.9]") == ["power-0.1", "classic-0.9"]
    assert value("{seed: [0, 1], width: [8]}") == {"seed": [0, 1], "width": [8]}
    for text in ("[1, 2", "{seed: [0}", "[!!python/object/apply:os.getcwd []]"):
        with pytest.raises(Refused, match=r"no list or mapping; write for example '\[1, 2\]'"):
            value(text)


def test_help_is_no_error():
    for arguments in (["--help"], ["run", "-h"], ["sample", "--help"], ["--version"]):
        assert "error" not in call(*arguments)


def test_presets_lists_what_can_be_run(repository):
    assert call("presets").splitlines() == [
        "counts       long         The long one",
        "counts       tiny         The tiny one",
        "ladder       sweep        The sweep one",
        "ladder       tiny         The tiny one",
    ]
    shown = call("presets", "counts")
    assert "highest learning rate" in shown and "step of the multiplier" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["presets", "cuonts"], "did you mean 'counts'"),
        (["estimate", "counts", "tinny"], "did you mean 'tiny'"),
        (["estimate", "counts", "tiny", "--gpu", "h100"], "did you mean 'H100'"),
        (["estimate", "counts", "tiny", "--utilisation", "0"], "utilisation is 0.0"),
        (["run", "counts", "../tiny"], "refused"),
        (["run", "counts", "tiny", "-p", "stepz", "3"], "did you mean 'steps'"),
        (["run", "counts", "tiny", "-p", "steps", "-3"], "steps is -3"),
        (["run", "counts", "tiny", "-p", "lr", "nan"], "finite"),
        (["run", "counts", "tiny", "-p", "steps", "1e2"], "write 100"),
        (["run", "counts", "tiny", "-p", "sweep", "{sed: [0]}"], "did you mean 'seed'"),
        (["run", "counts", "tiny", "-p", "sweep", "{seed: [0"], "no list or mapping"),
        (["run", "counts", "tiny", "-p", "dataset", "mixtur9"], "did you mean 'mixture9'"),
        (["run", "counts", "tiny", "-p", "out", "x"], "option --out"),
        (["run", "counts", "tiny", "--processes", "5"], "processes is 5"),
        (["run", "counts", "tiny", "--where", "moon"], "'moon'"),
        (["run", "counts"], "Missing argument"),
        (["train", "/nowhere"], "no run folder"),
        (["sample", "/nowhere"], "no run folder"),
        (["results", "cuonts"], "did you mean 'counts'"),
        (["results", "--keep", "/nowhere"], "not complete"),
    ],
)
def test_mistakes_get_one_message_and_exit_2(repository, arguments, words):
    assert words in call(*arguments, code=2)
    assert not (repository / "runs").exists()


def failing(error):
    def fail(*arguments, **named):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (launch.RunFailed("cell 3 failed"), 1),
        (Failed("cell 3 failed"), 1),
        (checkpoint.CheckpointError("cell 3 failed"), 1),
        (Refused("cell 3 failed"), 2),
        (folder.FolderError("cell 3 failed"), 2),
        (checkpoint.PartsDiffer("cell 3 failed"), 2),
    ],
)
def test_failed_and_refused_have_their_own_codes(repository, monkeypatch, error, code):
    monkeypatch.setattr(jobs, "_execute", failing(error))
    said = call("run", "counts", "tiny", code=code)
    assert said.splitlines()[-1] == "error: cell 3 failed"


@pytest.mark.parametrize("kind", [ValueError, TypeError, RuntimeError, OSError])
def test_a_defect_shows_its_traceback(repository, monkeypatch, kind):
    """Errors that are not the library's own pass through, as Python shows them."""
    defect = kind("shapes (3,) and (4,)")
    monkeypatch.setattr(jobs, "run", failing(defect))
    result = CliRunner().invoke(main, ["run", "counts", "tiny"])
    assert result.exception is defect and result.exit_code == 1
    assert "error:" not in result.output


def test_a_defect_shows_its_traceback_in_a_process():
    script = (
        "import diffbook_lib.runs.presets as presets, diffbook_lib.__main__ as line;"
        "presets.names = lambda method: int('three'); line.main(['presets', 'cld'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ValueError: invalid literal")


def test_estimate_in_words_and_in_json(repository):
    arguments = "estimate", "counts", "tiny", "-p", "precison", "fp32"
    assert "did you mean 'precision'" in call(*arguments, code=2)
    words, numbers = call(*arguments[:3]), json.loads(call(*arguments[:3], "--json"))
    assert f"{numbers['parameters']:,} trainable" in words
    assert numbers["samples"] == 72 and numbers["gpu"] == "H100" and numbers["members"] == 1
    sweep = call(*arguments[:3], "-p", "sweep", "{seed: [0, 1, 2], lr: [0.1, 1.0e-2]}")
    assert "counts tiny, 6 members" in sweep and "432 examples" in sweep
    assert not (repository / "runs").exists()


def test_parameters_of_every_form_reach_the_specification(repository):
    out = repository / "run"
    parameters = {
        "lr": "1e-3",
        "steps": "9",
        "ema": "[power-0.2, classic-0.5]",
        "sweep": "{seed: [3, 4], lr: [1.0e-2]}",
        "precision": "bf16",
    }
    given = [part for name, text in parameters.items() for part in ("-p", name, text)]
    assert call("run", "counts", "tiny", *given, "--out", out, "--prepare").strip() == str(
        out / "spec.json"
    )
    spec = folder.read_spec(out)
    assert (spec.lr, spec.steps, spec.precision) == (1e-3, 9, "bf16")
    assert spec.ema == ("power-0.2", "classic-0.5")


@pytest.mark.slow
def test_a_folder_is_prepared_trained_and_sampled_without_papermill(repository):
    """In processes of their own, as torchrun and Slurm start them; the second time there is
    nothing left to do."""
    out = repository / "elsewhere" / "run"
    call("run", "ladder", "tiny", "-p", "table", "{nfe: [3]}", "--out", out, "--prepare")
    folder.unlock(out)
    environment = miniature.environment(repository)

    def stage(name):
        command = [sys.executable, "-m", "diffbook_lib", name, str(out)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    early = stage("sample")
    assert early.returncode == 1 and "Traceback" not in early.stderr
    assert "holds no checkpoint yet; train the run first" in early.stderr
    trained = stage("train")
    assert trained.returncode == 0 and "6/6" in trained.stderr, trained.stderr
    sampled = stage("sample")
    assert sampled.returncode == 0, sampled.stderr
    names = sorted(str(p.relative_to(out / "samples")) for p in out.glob("samples/*/*"))
    assert names == [f"nfe-{nfe}/{first:012d}.safetensors" for nfe in (3, 5) for first in (0, 4, 8)]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert "6/6" in call("train", out) and call("sample", out) == ""
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert "table: {'nfe': [3]} -> {}" in call("run", "ladder", "tiny", "--out", out, code=2)


def test_results_show_runs_of_this_checkout(repository):
    spec = presets.resolve("ladder", "tiny")
    run = folder.open_run("", spec)
    seconds = {"training_seconds": 1.0, "sampling_seconds": 0.0, "grading_seconds": 0.0}
    records.write_record(run, spec, [Measurement("FID", 3.25, 9)], **seconds)
    assert "runs/ladder-tiny/record.json" in call("results", "ladder")
    assert "results/ladder/tiny.json" in call("results", "--keep", run)
    shown = call("results")
    assert "results/ladder/tiny.json" in shown and "counts: recorded runs" in shown


def test_a_complete_run_starts_nothing(repository, monkeypatch):
    spec = presets.resolve("ladder", "tiny")
    run = folder.open_run("", spec)
    seconds = {"training_seconds": 1.0, "sampling_seconds": 0.0, "grading_seconds": 0.0}
    records.write_record(run, spec, [Measurement("FID", 3.25, 9)], **seconds)
    monkeypatch.setattr(jobs, "_execute", failing(AssertionError))
    assert call("run", "ladder", "tiny").startswith("complete: ")


def test_listing_needs_no_torch():
    script = (
        "import sys; from diffbook_lib.__main__ import main\n"
        "try: main(['presets', 'cld'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "smoke" in done.stdout, done.stderr


def test_what_run_notebooks_need_is_found_in_runs():
    assert {"Task", "train_members"} <= {*runs.__all__} <= {*dir(runs)}
    assert all(getattr(runs, name).__name__ == name for name in runs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = runs.trian
