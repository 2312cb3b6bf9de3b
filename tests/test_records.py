import json
import subprocess
import sys
from dataclasses import dataclass

import miniature
import pytest
from diffbook_lib.records import Metric, RecordError, SpecMismatch

from diffbook_lib import presets, records, results


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    return miniature.write(tmp_path)


@pytest.fixture
def spec(repository):
    return presets.resolve("cld", "tiny")


@pytest.fixture
def folder(repository):
    return repository / "run"


def test_same_specification_continues(folder, spec):
    assert records.open_run(folder, spec) == folder
    before = (folder / "spec.json").read_bytes()
    assert records.open_run(folder, spec) == folder
    assert (folder / "spec.json").read_bytes() == before
    assert records.read_spec(folder) == spec


def test_no_folder_means_the_default_one(repository, spec):
    assert records.open_run("", spec) == repository / "runs" / "cld-tiny"


def test_other_specification_is_refused_with_the_difference(folder, spec):
    records.open_run(folder, spec)
    other = presets.resolve("cld", "tiny", {"lr": 0.5, "steps": 7})
    with pytest.raises(SpecMismatch) as error:
        records.open_run(folder, other)
    changed = [line for line in str(error.value).splitlines() if "->" in line][1:]
    assert changed == ["  steps: 6 -> 7", "  lr: 0.01 -> 0.5"]
    assert records.read_spec(folder) == spec


def test_a_value_that_was_not_recorded_is_a_difference(folder, spec):
    records.open_run(folder, spec)
    old = json.loads((folder / "spec.json").read_text())
    del old["clip"]
    (folder / "spec.json").write_text(json.dumps(old))
    with pytest.raises(SpecMismatch, match=r"clip: \(absent\) -> 1.0"):
        records.check_run(folder, spec)


@pytest.mark.parametrize("content", ["", '{"method": "cl', "[1]", "\0\0"])
def test_damaged_specification_is_reported(folder, spec, content):
    records.open_run(folder, spec)
    (folder / "spec.json").write_text(content)
    for use in (lambda: records.open_run(folder, spec), lambda: records.read_spec(folder)):
        with pytest.raises(RecordError, match="damaged"):
            use()


def test_checkpoints_without_specification_are_not_adopted(folder, spec):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "000000000016.safetensors").touch()
    with pytest.raises(RecordError, match=r"no spec\.json"):
        records.open_run(folder, spec)


def test_names_are_no_paths(spec):
    with pytest.raises(presets.PresetError, match="refused"):
        presets.spec("cld", {**spec.model_dump(), "preset": "a/../b"})


def test_folder_in_use_by_another_process_is_refused(folder, spec, monkeypatch):
    script = (
        "import sys, time; from diffbook_lib import presets, records;"
        f"records.open_run({str(folder)!r}, presets.resolve('cld', 'tiny'));"
        "print('open', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert other.stdout.readline()
    monkeypatch.setattr(records, "PATIENCE", 0.0)
    try:
        with pytest.raises(RecordError, match=f"process {other.pid} works in"):
            records.open_run(folder, spec)
    finally:
        other.kill()
        other.wait()
    monkeypatch.undo()
    assert records.open_run(folder, spec) == folder  # the system freed it with the process


@dataclass
class Measured:
    """What another module may call a result."""

    name: str
    value: float
    samples: int
    seed: int
    floor: float
    details: dict


def write(folder, spec, value=3.5):
    records.open_run(folder, spec)
    measured = [
        Measured("Fréchet distance", value, 2000, 0, 3.2, {"spread": [3.0, 4.0]}),
        Metric(name="sure", value=0.9),
        {"name": "bits", "value": 2, "samples": 10},
    ]
    return records.write_record(folder, spec, measured, seconds=12.5, samples_per_second=99.0)


def test_record_says_all_that_is_needed(folder, spec):
    write(folder, spec)
    record = records.read_record(folder)
    assert record.spec == spec and type(record.spec) is type(spec)
    assert record.samples_seen == spec.steps * spec.batch
    assert record.results[0].floor == 3.2 and record.results[0].details == {"spread": [3.0, 4.0]}
    assert record.results[2].value == 2.0
    assert record.versions["torch"] and record.hardware.cpu and record.hardware.cores >= 1
    assert record.date.tzinfo is not None
    assert records.is_complete(folder, spec)
    assert not records.is_complete(folder, presets.resolve("cld", "tiny", {"steps": 9}))


def test_results_that_are_not_finite_make_no_record(folder, spec):
    with pytest.raises(RecordError, match="finite"):
        write(folder, spec, value=float("nan"))
    assert not (folder / "record.json").exists()


def test_damaged_record_is_reported(folder, spec):
    file = write(folder, spec)
    good = file.read_text()
    for bad in (good[:-20], good.replace("12.5", "-1"), good.replace('"lr"', '"lt"')):
        file.write_text(bad)
        with pytest.raises(RecordError, match="not a valid record"):
            records.read_record(folder)


def test_code_outside_its_checkout_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "diffbook_lib" / "records.py"))
    assert records.code_state() == ("unknown", None)


def test_changed_code_is_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    module = tmp_path / "diffbook_lib" / "records.py"
    module.parent.mkdir()
    module.write_text("1\n")
    git("init", "-q")
    monkeypatch.setattr(records, "__file__", str(module))
    assert records.code_state() == ("unknown", None)  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    commit, dirty = records.code_state()
    assert len(commit) == 40 and dirty is False
    module.write_text("2\n")
    assert records.code_state() == (commit, True)


def test_kept_records_stand_beside_published_figures(repository, folder, spec):
    (repository / "results").mkdir()
    (repository / "results" / "published.yaml").write_text(
        '- {method: cld, figure: FID, value: "2.25", source: "CLD, Table 1", tag: page}\n'
        '- {method: ardm, figure: bpd, value: "2.7", source: "ARDM, Table 2", tag: paper}\n'
    )
    write(folder, spec)
    assert results.keep(folder) == repository / "results" / "cld" / "tiny.json"
    ours, *_, published = results.rows("cld")
    assert (ours.figure, ours.value, ours.floor, ours.samples, ours.seed) == (
        "Fréchet distance",
        "3.5",
        "3.2",
        "2000",
        "0",
    )
    assert ours.scale == "mixture9, 6 steps of 8" and "12 s" in ours.hardware
    assert (published.value, published.source) == ("2.25", "CLD, Table 1 [page]")
    table = results.table("cld")
    assert "ARDM" not in table and table.index("recorded runs") < table.index("published figures")


def test_only_the_preset_itself_is_kept(folder, repository):
    write(folder, presets.resolve("cld", "tiny", {"steps": 9}))
    with pytest.raises(RecordError, match="steps: preset 6, run 9"):
        results.keep(folder)
    with pytest.raises(RecordError, match="not complete"):
        results.keep(repository / "nowhere")


def test_runs_of_other_seeds_are_kept_beside_the_preset(folder, repository, spec, tmp_path):
    write(folder, spec)
    (folder / "figures").mkdir()
    (folder / "figures" / "samples.png").write_bytes(b"picture")
    other = tmp_path / "other"
    records.start_run(other, presets.resolve("cld", "tiny", {"seed": 3}))
    write(other, presets.resolve("cld", "tiny", {"seed": 3}))
    with pytest.raises(RecordError, match="no run of cld tiny is kept"):
        results.recorded("cld", "tiny")
    files = [results.keep(run) for run in (other, folder)]
    assert [file.name for file in files] == ["tiny-seed3.json", "tiny.json"]
    assert files[1].with_suffix(".png").read_bytes() == b"picture"
    assert not files[0].with_suffix(".png").exists()
    assert [record.spec.seed for record in results.recorded("cld", "tiny")] == [0, 3]


def test_recalled_figures_are_not_listed(repository):
    (repository / "results").mkdir()
    file = repository / "results" / "published.yaml"
    file.write_text('- {method: cld, figure: FID, value: "2", source: memory, tag: recalled}\n')
    with pytest.raises(RecordError, match="tag"):
        results.published("cld")


def test_shipped_figures_are_valid():
    for method in presets.SPECS:
        assert results.published(method)
        assert results.table(method)
