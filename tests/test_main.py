import json
import subprocess
import sys

import miniature
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from diffbook_lib import jobs, presets, records
from diffbook_lib.__main__ import main, value


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    return miniature.write(tmp_path)


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
    assert value("1e-3") == 0.001 and value("-3") == -3 and value("True") is True
    assert value("[1, 2]") == [1, 2] and value("unet") == "unet" and value("{a: 1}") == "{a: 1}"
    with pytest.raises(presets.PresetError, match="no list"):
        value("[1, 2")


def test_help_is_no_error():
    for arguments in (["--help"], ["run", "-h"], ["--version"]):
        assert "error" not in call(*arguments)


def test_presets_lists_what_can_be_run(repository):
    assert call("presets").splitlines() == [
        "cld          small        A little more",
        "cld          tiny         Nearly nothing",
    ]
    assert "highest learning rate" in call("presets", "cld")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["presets", "cdl"], "did you mean 'cld'"),
        (["estimate", "cld", "tinny"], "did you mean 'tiny'"),
        (["estimate", "cld", "tiny", "--gpu", "h100"], "did you mean 'H100'"),
        (["estimate", "cld", "tiny", "--utilisation", "0"], "utilisation is 0.0"),
        (["run", "cld", "../tiny"], "refused"),
        (["run", "cld", "tiny", "-p", "stepz", "3"], "did you mean 'steps'"),
        (["run", "cld", "tiny", "-p", "steps", "-3"], "steps is -3"),
        (["run", "cld", "tiny", "-p", "lr", "nan"], "finite"),
        (["run", "cld", "tiny", "-p", "steps", "1e2"], "write 100"),
        (["run", "cld", "tiny", "--processes", "3"], "processes is 3"),
        (["run", "cld", "tiny", "--where", "moon"], "'moon'"),
        (["run", "cld"], "Missing argument"),
        (["train", "/nowhere"], "no run folder"),
        (["results", "cdl"], "did you mean 'cld'"),
        (["results", "--keep", "/nowhere"], "not complete"),
    ],
)
def test_mistakes_get_one_message(repository, arguments, words):
    assert words in call(*arguments, code=2)
    assert not (repository / "runs").exists()


def test_a_failed_run_has_its_own_code(repository, monkeypatch):
    def fail(plan):
        raise jobs.RunFailed("cell 3 failed")

    monkeypatch.setattr(jobs, "_execute", fail)
    assert "error: cell 3 failed" in call("run", "cld", "tiny", code=1)


def test_estimate_in_words_and_in_json(repository):
    arguments = "estimate", "cld", "tiny", "-p", "precision", "fp32"
    assert "unknown parameter 'precision'" in call(*arguments, code=2)
    words, numbers = call(*arguments[:3]), json.loads(call(*arguments[:3], "--json"))
    assert f"{numbers['parameters']:,} trainable" in words and "3 forward passes" in words
    assert numbers["samples"] == 48 and numbers["gpu"] == "H100"
    assert not (repository / "runs").exists()


def test_a_folder_is_prepared_and_trained_without_papermill(repository):
    out = repository / "elsewhere" / "run"
    call("run", "cld", "tiny", "-p", "lr", "1e-3", "--out", out, "--prepare")
    assert records.read_spec(out).lr == 1e-3
    command = [sys.executable, "-m", "diffbook_lib", "train", str(out)]
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "6/6" in done.stderr
    assert "lr: 0.001 -> 0.01" in call("run", "cld", "tiny", "--out", out, code=2)


def test_results_show_runs_of_this_checkout(repository):
    spec = presets.resolve("cld", "tiny")
    run = records.open_run("", spec)
    records.write_record(run, spec, [records.Metric(name="FID", value=3.25, samples=9)], 1.0)
    assert "runs/cld-tiny/record.json" in call("results", "cld")
    assert "results/cld/tiny.json" in call("results", "--keep", run)
    assert "results/cld/tiny.json" in call("results")


def test_listing_needs_no_torch():
    script = "import sys, diffbook_lib.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
