"""The command line under hostile files, a newcomer's mistakes and an unkind environment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniature
import numpy as np
import psutil
import pytest
from test_launch import LOOPBACK, listening
from test_main import call

from diffbook_lib import __main__ as command_line
from diffbook_lib.errors import Refused
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import folder, grading, jobs, presets, progress, records, results, training
from diffbook_lib.runs.cells import execute
from diffbook_lib.runs.records import RecordError
from diffbook_lib.runs.sampling import Samples
from diffbook_lib.runs.sweeps import Member
from diffbook_lib.specs import SpecError

ROOT = Path(__file__).parents[1]


# --- presets of others ---------------------------------------------------------------------

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
UNPLAIN = {
    "an alias bomb": (BOMB, "reference"),
    "an alias bomb as a value": ("steps: &a [x]\nema: [*a, *a]\n", "reference"),
    "a name twice": ("seed: 1\nseed: 2\n", "the name 'seed' twice"),
    "an octal number": ("seed: 010\n", "010, which some read as 8"),
    "a number in sixties": ("steps: 1:30\n", "1:30, which some read as 90"),
    "a hexadecimal number": ("seed: 0x10\n", "0x10, which some read as 16"),
    "a fraction in sixties": ("lr: 1:30.5\n", "1:30.5, which some read as minutes"),
    "a name that is a number": ("1: 2\n", "the name '1', which is no text"),
    "a nest": ("seed: " + "[" * 20_000, "cannot be read"),
    "no YAML": ("seed: [\n", "not plain YAML"),
    "code": ("seed: !!python/object/apply:os.getcwd []\n", "not plain YAML"),
    "a list": ("- 1\n", "must hold lines"),
}


@pytest.mark.parametrize("name", UNPLAIN)
def test_presets_that_are_not_what_they_look_like_are_refused(repository, name):
    text, words = UNPLAIN[name]
    file = repository / "nbs" / "presets" / "counts" / "other.yaml"
    file.write_text(text if name == "a list" else f"preset: other\n{text}")
    begun = time.process_time()
    with pytest.raises(SpecError, match=r"other\.yaml") as error:
        presets.read("counts", "other")
    assert words in str(error.value) and len(str(error.value)) < 600
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("text", ["[&a 1, *a]", "{a: [010]}", "{a: [1], a: [2]}", "[1:30]"])
def test_parameters_that_are_not_what_they_look_like_are_refused(text):
    with pytest.raises(Refused, match="no list or mapping"):
        command_line.value(text)


def test_large_values_are_shortened_before_they_are_shown(repository):
    deep: list = ["x"]
    for _ in range(40):
        deep = [deep] * 9
    with pytest.raises(SpecError, match="steps is") as error:
        presets.resolve("counts", "tiny", {"steps": deep})
    assert len(str(error.value)) < 10_000


def test_a_crafted_name_of_a_parameter_is_no_code(repository):
    """Which it is for `papermill -f`, as the README says."""
    name = "steps = 3; __import__('pathlib').Path('done').touch()"
    assert "unknown parameter" in call("run", "counts", "tiny", "-p", name, "1", code=2)
    assert not Path("done").exists()
    words = " ".join((ROOT / "README.md").read_text().split())
    assert "A parameter file for papermill is code" in words


# --- records of others ---------------------------------------------------------------------


def recorded(run, spec, name="Spread", values=(4.0,), floor=None, **at):
    """A run's record with a figure of these values, one for each nfe."""
    folder.open_run(run, spec)
    found = [
        Measurement(name, value, 2000, 0, floor, at={"nfe": nfe, **at})
        for nfe, value in enumerate(values, 2)
    ]
    seconds = {"training_seconds": 1.0, "sampling_seconds": 1.0, "grading_seconds": 1.0}
    return records.write_record(run, spec, found, **seconds)


@pytest.mark.parametrize("kind", ["picture", "folder", "pipe"])
def test_only_a_regular_picture_is_kept(repository, kind):
    run = repository / "run"
    recorded(run, presets.resolve("ladder", "tiny"))
    secret = repository / "secret" / "samples.png"
    secret.parent.mkdir()
    secret.write_text("secret")
    if kind == "folder":
        (run / "figures").symlink_to(secret.parent)
    else:
        (run / "figures").mkdir()
        picture = run / "figures" / "samples.png"
        picture.symlink_to(secret) if kind == "picture" else os.mkfifo(picture)
    with pytest.raises(RecordError, match=r"samples\.png is a link, or no file"):
        results.keep(run)
    assert not list(repository.glob("results/ladder/*.png"))


def test_records_do_not_steer_the_terminal(repository):
    spec = presets.resolve("ladder", "tiny")
    steering = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnihton\r"
    recorded(folder.default_folder(spec), spec, name=f"Spread{steering}", part=f"a{steering}")
    damaged = repository / "runs" / f"ladder-{steering[:9].replace('/', '')}"
    damaged.mkdir()
    (damaged / "record.json").write_text("{")
    for shown in (call("results", "ladder", "--all"), call("train", damaged, code=2)):
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert "Spread" in call("results", "ladder")


def test_results_fit_a_hundred_columns_and_show_the_best_first(repository, monkeypatch):
    spec = presets.resolve("ladder", "tiny")
    values = [9.0, 1.0, 4.0, 6.0, 3.0]
    recorded(folder.default_folder(spec), spec, "Distance", values, 2.0, grid="quadratic" * 12)
    shown = call("results", "ladder")
    assert max(map(len, shown.splitlines())) <= 100
    places = [shown.index(f" {value:g}  nfe") for value in (1.0, 3.0, 4.0)]
    assert places == sorted(places)
    assert "and 2 more (--all)" in shown and " 9  nfe" not in shown
    assert " 9  nfe" in call("results", "ladder", "--all")
    monkeypatch.delenv("DIFFBOOK_ROOT")
    for method in ("cld", "edm2"):
        published = results.table(method, most=3).splitlines()
        assert max(map(len, published)) <= 100


# --- mistakes ------------------------------------------------------------------------------

POINTS = ["cld", "toy", "-p", "network", "unet"]
MISTAKES = [
    (["run", "counts", "tiny", "--prepare", "-p", "dataset", "nope"], "unknown data set 'nope'"),
    (["run", "counts", "tiny", "--out", ""], "--out is empty"),
    (["run", "counts", "tiny", "--out", " ", "--prepare"], "--out is empty"),
    (["run", "ladder", "tiny", "-p", "depth", "100000000"], "less than or equal to 1000"),
    (["estimate", "ladder", "tiny", "-p", "depth", "100000000"], "less than or equal to 1000"),
    (["estimate", "ladder", "tiny", "-p", "width", "10000000000"], "less than or equal to 65536"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_are_refused_in_a_sentence(repository, arguments, words):
    said = call(*arguments, code=2)
    assert words in said and len(said.splitlines()) <= 2
    assert not (repository / "runs").exists()


@pytest.mark.parametrize("start", [["run"], ["run", "--prepare"], ["estimate"]])
def test_a_network_that_does_not_fit_the_data_is_refused(tmp_path, monkeypatch, start):
    monkeypatch.delenv("DIFFBOOK_ROOT", raising=False)
    out = [] if start == ["estimate"] else ["--out", tmp_path / "run"]
    said = call(*start, *POINTS, *out, code=2)
    assert said == (
        "error: network: 'unet' is for images, but the data are points; use 'mlp' or 'plain-mlp'\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["presets"], ["results"], ["run", "cld", "toy"]])
def test_a_wrong_root_is_named(tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path / "typo"))
    assert f"DIFFBOOK_ROOT is {tmp_path / 'typo'}" in call(*arguments, code=2)


def test_a_changed_run_has_a_folder_of_its_own(repository):
    """The same for the same changes, in any order and however they are said."""
    prepare = lambda *changes: (
        Path(call("run", "counts", "tiny", "--prepare", *changes).strip()).parent
    )
    plain = prepare()
    assert plain == repository / "runs" / "counts-tiny"
    changed = prepare("-p", "steps", "4", "-p", "lr", "1e-3")
    assert changed.name.startswith("counts-tiny-") and len(changed.name) == len("counts-tiny-") + 8
    assert prepare("-p", "lr", "0.001", "-p", "steps", "4") == changed
    assert prepare("-p", "lr", "0.001") not in (plain, changed)
    assert prepare("-p", "steps", "6") == plain
    assert folder.open_run("", folder.read_spec(changed)) == changed
    said = call("run", "counts", "tiny", "--out", changed, code=2)
    assert "steps: 4 -> 6" in said and "--out" in said


def test_changed_data_of_ones_own_stop_their_run(repository):
    """They do not begin another one in silence."""
    np.save(repository / "mine.npy", np.zeros((40, 2), np.float32))
    mine = {"dataset": "folder", "path": str(repository / "mine.npy")}
    plan = jobs.prepare("ladder", "tiny", mine)
    folder.open_run(plan.folder, plan.spec)
    np.save(repository / "mine.npy", np.ones((40, 2), np.float32))
    with pytest.raises(folder.SpecMismatch, match="changed since"):
        jobs.prepare("ladder", "tiny", mine)


# --- bars ----------------------------------------------------------------------------------


def test_bars_move_with_every_step_and_while_it_is_graded(repository, monkeypatch, capsys):
    from tqdm import tqdm

    moves = []

    class Bar(tqdm):
        def update(self, n=1):
            moves.append(n)
            return super().update(n)

    monkeypatch.setattr(progress, "progress_bar", lambda: Bar)
    spec = presets.resolve("counts", "tiny", {"log_every": 6, "checkpoint_every": 6})
    training.train(None, spec, execute(spec, "build")["task"])
    assert moves[:6] == [1] * 6
    grading.grade([Samples({}, None, 1, 0.0)] * 3, lambda x: [])
    grading.measure([Member(spec, repository, {}, {})] * 2, lambda member: [])
    shown = capsys.readouterr().err
    assert "grading: 100%" in shown and "3/3" in shown and "measuring: 100%" in shown


# --- kernels, terminals, Ctrl-C ------------------------------------------------------------

ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def started(root, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "diffbook_lib", *map(str, arguments)],
        env={**miniature.environment(root), **environment},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_a_run_in_an_unkind_environment(repository):
    """A locale of ASCII, another kernel of the same name, a folder whose name papermill would
    fill in: nothing listens to the network, nothing is said but how the run goes."""
    spec = repository / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": ["false"], "display_name": "mine", "language": "python"})
    )
    out = repository / "a {b} {0}"
    unkind = {"JUPYTER_PATH": str(repository / "share"), **ASCII}
    process = started(repository, "run", "counts", "long", "--out", out, **unkind)
    while not list(out.glob("checkpoints/*[1-9]*.safetensors")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(tree) > 1 and listening(tree) <= LOOPBACK
    said = process.communicate()[0].decode("ascii").replace("\r", "\n")
    assert process.returncode == 0, said
    assert said.lstrip().startswith("0%|") and "eavesdropping" not in said
    assert said.splitlines()[-1] == f"complete: {out / 'record.json'}"
    assert json.loads((out / "notebook.ipynb").read_text())["cells"]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["run", "run in two processes", "train"])
def test_ctrl_c_is_one_line(repository, start):
    run = repository / "run"
    arguments = ["run", "counts", "long", "-p", "steps", 10**6, "--out", run]
    if start == "train":
        call(*arguments, "--prepare")
        folder.unlock(run)
        arguments = ["train", run]
    if "two" in start:
        arguments += ["--processes", "2"]
    process = started(repository, *arguments)
    while not list(run.glob("checkpoints/*[1-9]*.safetensors")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    tree = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[0].decode().replace("\r", "\n")
    lines = [line for line in said.splitlines() if line.strip() and "%|" not in line]
    assert process.returncode == 130, said
    newest = int(max(run.glob("checkpoints/*.safetensors")).stem)
    assert lines == [f"stopped at step {newest // 12} of 1000000; the same command continues"]
    assert psutil.wait_procs(tree, timeout=60)[1] == []
