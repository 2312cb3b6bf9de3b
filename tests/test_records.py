"""Records: what was measured, asked for by coordinates, over seeds, or refused."""

import json
import math
import statistics
import subprocess

import pytest

from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import folder, grading, origin, presets, records
from diffbook_lib.runs.progress import Progress
from diffbook_lib.runs.records import RecordError
from diffbook_lib.runs.sampling import Samples
from diffbook_lib.runs.sweeps import Member

SECONDS = {"training_seconds": 12.5, "sampling_seconds": 3.0, "grading_seconds": 0.5}


@pytest.fixture
def spec(repository):
    return presets.resolve("ladder", "tiny")


@pytest.fixture
def run(repository):
    return repository / "run"


def measured(value, name="Spread", floor=None, **at):
    return Measurement(name, value, 2000, 0, floor, at=at)


RESULTS = [
    Measurement("Distance", 3.5, 2000, 7, details={"spread": [3.0, 4.0]}).with_floor([3.0, 3.4]),
    *(measured(10.0 * seed + nfe, seed=seed, nfe=nfe) for nfe in (5, 20) for seed in (0, 1, 3)),
    measured(8.0, nfe=50),
]


def write(run, spec, results=RESULTS, **changes):
    run.mkdir(exist_ok=True)
    return records.write_record(run, spec, results, **{**SECONDS, **changes})


def test_a_record_says_all_that_is_needed(run, spec):
    write(run, spec, processes=2)
    record = records.read_record(run)
    assert record.spec == spec and type(record.spec) is type(spec)
    assert record.results == tuple(RESULTS)
    assert record.results[0].floor == 3.2 and record.results[0].floor_range == (3.0, 3.4)
    assert record.results[0].details["spread"] == [3.0, 4.0]
    assert record.samples_seen == spec.steps * spec.batch == 72
    assert record.samples_per_second == 72 / 12.5
    assert record.processes == 2
    assert record.versions["torch"] and record.hardware.cpu and record.hardware.cores >= 1
    assert record.date.tzinfo is not None
    assert records.read_record(run / "record.json") == record


def test_training_sampling_and_grading_have_their_own_seconds(run, spec):
    """Of all members and all ways of sampling together."""
    run.mkdir()
    progress = Progress(6, 72, 0.5, 0.1, 1.0, 9.0, seconds=4.0)
    members = [Member(spec, run, {"seed": i}, {}, progress) for i in range(3)]
    samples = [Samples({"nfe": n}, None, n, seconds=2.5) for n in (5, 20)]
    graded = [grading.Graded([measured(1.0)], 0.25), grading.Graded([measured(2.0)], 0.5)]
    record = records.read_record(grading.finish(run, spec, members, samples, *graded))
    assert record.training_seconds == 12.0
    assert record.sampling_seconds == 5.0
    assert record.grading_seconds == 0.75
    assert [found.value for found in record.results] == [1.0, 2.0]


def test_all_members_are_counted(run, repository):
    spec = presets.resolve("ladder", "sweep")
    write(run, spec)
    assert records.read_record(run).samples_seen == 6 * 40 * 12


def test_a_record_belongs_to_one_specification(run, spec):
    assert not records.is_complete(run, spec)
    write(run, spec)
    assert records.is_complete(run, spec)
    assert not records.is_complete(run, presets.resolve("ladder", "tiny", {"steps": 9}))


def test_figures_are_selected_by_coordinates(run, spec):
    write(run, spec)
    record = records.read_record(run)
    assert [found.value for found in record.select("Spread", nfe=20)] == [20.0, 30.0, 50.0]
    assert [found.value for found in record.select("Spread", nfe=20, seed=1)] == [30.0]
    assert len(record.select("Spread")) == 7
    assert record.select("Distance") == (RESULTS[0],)


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("Spread", {"nfe": 21}, ["ladder tiny holds no 'Spread' at {'nfe': 21}", "'nfe': 20"]),
        ("Spread", {"nfe": 20, "seed": 2}, ["'seed': 2", "{'seed': 3, 'nfe': 20}"]),
        ("Spread", {"grid": "linear"}, ["'grid'", "{'nfe': 50}"]),
        ("Sprad", {}, ["no 'Sprad'", "Distance, Spread"]),
    ],
)
def test_what_was_not_measured_is_said_with_what_was(run, spec, name, at, words):
    write(run, spec)
    with pytest.raises(RecordError) as error:
        records.read_record(run).select(name, **at)
    assert all(word in str(error.value) for word in words), error.value


def test_spreads_are_over_seeds_alone(run, spec):
    write(run, spec)
    record = records.read_record(run)
    assert [(s.name, s.at, s.seeds) for s in record.spreads] == [
        ("Spread", {"nfe": 5}, 3),
        ("Spread", {"nfe": 20}, 3),
    ]
    spread = record.spread("Spread", nfe=5)
    values = [5.0, 15.0, 35.0]
    assert (spread.low, spread.high, spread.mean) == (5.0, 35.0, pytest.approx(55 / 3))
    assert spread.std == pytest.approx(statistics.stdev(values))
    assert spread == record.spreads[0]
    with pytest.raises(RecordError, match=r"'Spread' at \{\} is not one figure over seeds but .*5"):
        record.spread("Spread")
    with pytest.raises(RecordError, match="no figure of two seeds"):
        record.spread("Spread", nfe=50)
    with pytest.raises(RecordError, match="holds no 'Spread' at"):
        record.spread("Spread", nfe=51)


def test_names_are_not_mixed_up_in_spreads():
    results = [measured(1.0, name, seed=seed) for name in ("a", "b") for seed in (0, 1)]
    assert [spread.name for spread in records.spreads(results)] == ["a", "b"]
    assert records.spreads(results[:1] + results[2:3]) == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite_make_no_record(run, spec, bad):
    with pytest.raises(RecordError, match=rf"Spread at {{'nfe': 5}} is {bad}"):
        write(run, spec, [RESULTS[0], measured(bad, nfe=5)])
    with pytest.raises(RecordError, match="floor"):
        write(run, spec, [measured(1.0, floor=bad, nfe=5)])
    assert not (run / "record.json").exists()


def test_nothing_measured_makes_no_record(run, spec):
    with pytest.raises(RecordError, match="nothing was measured"):
        write(run, spec, [])
    assert not (run / "record.json").exists()


@pytest.mark.parametrize("name", SECONDS)
def test_negative_seconds_make_no_record(run, spec, name):
    with pytest.raises(RecordError, match=name):
        write(run, spec, **{name: -1.0})


def test_damaged_record_is_reported(run, spec):
    file = write(run, spec)
    good = file.read_text()
    for bad in (good[:-20], good.replace("12.5", "-1"), good.replace('"lr"', '"lt"'), "", "[]"):
        file.write_text(bad)
        with pytest.raises(RecordError, match="not a valid record"):
            records.read_record(run)
    file.unlink()
    with pytest.raises(RecordError, match="not complete"):
        records.read_record(run)


def test_an_old_record_that_lacks_a_field_with_a_default_reads(run, spec):
    file = write(run, spec)
    whole = records.read_record(file)
    old = json.loads(file.read_text())
    for name in ("clip", "noise_seed", "snapshot_every", "sweep"):
        del old["spec"][name]
    del old["sha256"], old["starts"], old["spreads"], old["processes"], old["results"][1]["details"]
    file.write_text(json.dumps(old))
    record = records.read_record(file)
    assert record.spec == spec and record.processes == 1 and record.spreads == ()
    assert record.results == whole.results
    assert record.spread("Spread", nfe=5) == whole.spread("Spread", nfe=5)
    assert records.is_complete(run, spec)


def test_grading_carries_the_coordinates_of_samples_and_members(spec, run):
    samples = [Samples({"seed": 1, "nfe": n}, n, nfe=n - 1, seconds=0.0) for n in (5, 20)]
    judge = lambda x: [Measurement("Twice", 2.0 * x, 10, details={"k": 1}), measured(x, part="a")]
    graded = grading.grade(samples, judge)
    assert [(f.name, f.value, dict(f.at)) for f in graded.results] == [
        ("Twice", 10.0, {"seed": 1, "nfe": 5}),
        ("Spread", 5, {"seed": 1, "nfe": 5, "part": "a"}),
        ("Twice", 40.0, {"seed": 1, "nfe": 20}),
        ("Spread", 20, {"seed": 1, "nfe": 20, "part": "a"}),
    ]
    assert graded.results[2].details == {"k": 1, "nfe": 19} and graded.seconds >= 0
    members = [Member(spec, run, {"seed": i}, {}) for i in (4, 5)]
    graded = grading.measure(members, lambda member: measured(member.at["seed"] / 2))
    assert [(f.value, f.at) for f in graded.results] == [(2.0, {"seed": 4}), (2.5, {"seed": 5})]


def test_code_outside_its_checkout_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "lib" / "runs" / "origin.py"))
    assert origin.code_state() == ("unknown", None)


def test_changed_code_is_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    module = tmp_path / "diffbook_lib" / "runs" / "origin.py"
    module.parent.mkdir(parents=True)
    module.write_text("1\n")
    git("init", "-q")
    monkeypatch.setattr(origin, "__file__", str(module))
    assert origin.code_state() == ("unknown", None)  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    commit, dirty = origin.code_state()
    assert len(commit) == 40 and dirty is False
    module.write_text("2\n")
    assert origin.code_state() == (commit, True)


def test_the_specification_in_the_folder_and_in_the_record_are_one(run, spec):
    folder.open_run(run, spec)
    write(run, spec)
    written = json.loads((run / "record.json").read_text())["spec"]
    assert written == json.loads((run / "spec.json").read_text())
