"""Presets: defaults, overlaid by the file, overlaid by what cell, papermill or command line set."""

import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbook_lib import data, errors, specs
from diffbook_lib.runs import cells, folder, presets
from diffbook_lib.specs import SpecError

SHIPPED = Path(__file__).parents[1] / "nbs"


def test_unknown_method_and_preset(repository):
    with pytest.raises(SpecError, match=r"'cuonts'.*did you mean 'counts'"):
        presets.names("cuonts")
    with pytest.raises(SpecError, match=r"'tinny'.*sweep, tiny.*did you mean 'tiny'"):
        presets.read("ladder", "tinny")
    with pytest.raises(SpecError, match="presets: none"):
        presets.read("cld", "tiny")


@pytest.mark.parametrize("name", ["a/b", "../tiny", "..", "/etc/passwd", "a\\b", "", ".hidden"])
def test_names_that_leave_their_folder_are_refused(repository, name):
    with pytest.raises(SpecError, match="refused"):
        presets.read("counts", name)


def test_presets_are_read_safely(repository):
    place = repository / "nbs" / "presets" / "counts"
    (place / "evil.yaml").write_text("preset: !!python/object/apply:os.getcwd []\n")
    (place / "list.yaml").write_text("- 1\n")
    (place / "copy.yaml").write_text("preset: tiny\n")
    for name, words in [("evil", "plain YAML"), ("list", "parameter: value"), ("copy", "own name")]:
        with pytest.raises(SpecError, match=words):
            presets.read("counts", name)


def test_names_and_summary(repository):
    assert presets.names("counts") == ["long", "tiny"]
    assert presets.summary("counts", "long") == "The long one"


def test_changes_lie_over_the_file_and_the_file_over_the_defaults(repository):
    spec = presets.resolve("ladder", "tiny", {"batch": 16, "ema": ["classic-0.5"]})
    assert (spec.preset, spec.method) == ("tiny", "ladder")
    assert (spec.batch, spec.ema) == (16, ("classic-0.5",))  # changed
    values = dict(spec)
    assert (values["width"], spec.lr) == (8, 1e-2)  # from the file, where the default is 64
    assert (spec.clip, values["sigma_data"]) == (1.0, 0.5)  # defaults
    assert spec == presets.collect(
        "ladder", {"preset": "tiny", "batch": 16, "ema": ["classic-0.5"]}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"preset": "sweep"}, "here 'tiny'"),
        ({"out": "x"}, "use the option --out"),
        ({"processes": 2}, "use the option --processes"),
        ({"dataset": "mixtur9"}, "did you mean 'mixture9'"),
        ({"sweep": {"dataset": ["mixture9", "digitz"]}}, "did you mean 'digits'"),
    ],
)
def test_changes_are_checked(repository, changes, words):
    with pytest.raises(errors.Refused, match=words):
        presets.resolve("ladder", "tiny", changes)


def test_a_typo_in_the_file_is_refused(repository):
    file = presets.path("counts", "tiny")
    file.write_text(file.read_text().replace("steps:", "stesp:"))
    with pytest.raises(SpecError) as error:
        presets.resolve("counts", "tiny")
    said = str(error.value)
    assert "unknown parameter 'stesp' (value 6); did you mean 'steps'?" in said
    assert "steps is missing" in said


def namespace(**more) -> dict:
    """The globals of a notebook after its parameters cell, as IPython has them."""
    return {
        **{"__name__": "__main__", "_": "", "_i1": "x", "In": ["", "x"], "Out": {}},
        **{"math": math, "exit": exit, "Path": Path, "out": "", "processes": 1},
        "preset": "tiny",
        **more,
    }


def test_collect_passes_over_what_is_no_parameter(repository):
    found = namespace(lines=[object()], pair=(1, math), table={"a": math})
    assert presets.collect("counts", found) == presets.resolve("counts", "tiny")


@pytest.mark.parametrize("wrong", [3, 0.5, "a", True, None, [1], (1,), {}, {"a": [1]}])
def test_collect_stops_at_a_mistyped_parameter(repository, wrong):
    with pytest.raises(SpecError, match=r"'stepz'.*did you mean 'steps'"):
        presets.collect("counts", namespace(stepz=wrong))


def test_collect_needs_a_preset(repository):
    found = namespace()
    del found["preset"]
    with pytest.raises(SpecError, match="sets no preset; write for example"):
        presets.collect("counts", found)


@pytest.mark.parametrize("method", ["counts", "ladder"])
def test_collect_can_be_called_again_after_the_whole_notebook(repository, method):
    """Its cells define lists, tuples and numbers under names that resemble parameters."""
    found = namespace(steps=4)
    first = presets.collect(method, found)
    found |= cells.execute(first, "build", "sample")
    found |= {"samples": [object()], "graded": (object(), 0.5), "zzzzzz": 3, "qqqq": [1]}
    assert "example" in found and isinstance(found["example"], tuple)
    found["steps"] = 5
    second = presets.collect(method, found)
    assert second == first.model_copy(update={"steps": 5})
    found["noise_seed"] = 7  # a parameter is one whenever it was set
    assert presets.collect(method, found).noise_seed == 7
    found["lernrate"] = 1
    assert presets.collect(method, found).noise_seed == 7  # resembles none
    found["stepz"] = 3
    with pytest.raises(SpecError, match=r"'stepz'.*did you mean 'steps'"):
        presets.collect(method, found)


def test_a_name_that_was_wrong_at_first_stays_wrong(repository):
    found = namespace(zzzzzz=3)
    for _ in range(2):
        with pytest.raises(SpecError, match="unknown parameter 'zzzzzz'"):
            presets.collect("counts", found)


# --- one's own data ------------------------------------------------------------------------


def pictures(place: Path, count: int = 12, red: int = 0) -> Path:
    for i in range(count):
        (place / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (red, 10 * i, 0)).save(out, "BMP")
        (place / "ab"[i % 2] / f"{i}.bmp").write_bytes(out.getvalue())
    return place


def array(place: Path, value: int = 0) -> Path:
    levels = np.arange(12 * 64, dtype=np.uint8).reshape(12, 1, 8, 8) % 17
    levels[0, 0, 0, 0] = value
    np.save(place, levels)
    return place


def own(path: Path, **changes):
    changes = {"dataset": "folder", "path": str(path), **changes}
    return presets.resolve("counts", "tiny", changes)


@pytest.mark.parametrize("make", [lambda p, v=0: pictures(p / "mine", red=v), "array"])
def test_ones_own_data_are_known_by_their_hash(repository, monkeypatch, make):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(repository / "cache"))
    if make == "array":
        make = lambda place, value=0: array(place / "mine.npy", value)
    place = make(repository)
    spec = own(place)
    assert len(spec.data_hash) == 64
    run = folder.open_run(repository / "run", spec)
    assert folder.open_run(run, own(place)) == run  # the same data continue
    make(repository, 5)
    changed = own(place)
    assert changed.data_hash != spec.data_hash
    with pytest.raises(folder.SpecMismatch) as error:
        folder.open_run(run, changed)
    assert f"the data in {spec.path} changed since" in str(error.value)
    with pytest.raises(data.ChecksumError, match="has changed"):
        data.training(spec)  # as `train DIR` would find them
    other = own(place, steps=9)
    with pytest.raises(folder.SpecMismatch) as error:
        folder.open_run(run, other)
    said = str(error.value)
    assert "steps: 6 -> 9" in said and "data_hash" in said and "changed since" not in said


def test_data_of_the_book_have_no_hash(repository):
    assert presets.resolve("counts", "tiny").data_hash == ""


def test_own_data_that_are_not_there_are_refused(repository):
    with pytest.raises(data.DataError, match="nowhere"):
        own(repository / "nowhere")
    with pytest.raises(data.DataError, match="needs path"):
        presets.resolve("counts", "tiny", {"dataset": "folder"})


# --- what is shipped -----------------------------------------------------------------------


def test_root_needs_no_variable(monkeypatch):
    monkeypatch.delenv("DIFFBOOK_ROOT", raising=False)
    assert presets.root() == SHIPPED.parent


def test_a_method_without_run_notebook_is_named(repository):
    (repository / "nbs" / "counts.ipynb").unlink()
    with pytest.raises(SpecError, match=r"counts\.ipynb is missing: counts has no run notebook"):
        presets.notebook_path("counts")


@pytest.mark.parametrize(
    ("method", "name"),
    [(file.parent.name, file.stem) for file in sorted(SHIPPED.glob("presets/*/*.yaml"))],
)
def test_shipped_presets_resolve_and_say_what_they_are(method, name, monkeypatch):
    monkeypatch.delenv("DIFFBOOK_ROOT", raising=False)
    spec = presets.resolve(method, name)
    assert (spec.method, spec.preset) == (method, name)
    assert presets.summary(method, name)


@pytest.mark.parametrize("method", [file.stem for file in sorted(SHIPPED.glob("*.ipynb"))])
def test_shipped_notebooks_state_no_parameter_beside_preset_and_execution(method):
    (source,) = cells.tagged(SHIPPED / f"{method}.ipynb", "parameters")
    found: dict = {}
    exec(source, found)
    names = {name for name in found if not name.startswith("__")}
    assert names == {"preset", *presets.EXECUTION}
    assert presets.read(method, found["preset"]) and specs.find(method)


def test_the_repository_is_found_from_a_folder_inside(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFBOOK_ROOT", raising=False)
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "site" / "a" / "b" / "presets.py"))
    shutil.copytree(SHIPPED / "presets", tmp_path / "book" / "nbs" / "presets")
    (tmp_path / "book" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "book" / "deep")
    assert presets.root() == tmp_path / "book"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="DIFFBOOK_ROOT"):
        presets.root()
