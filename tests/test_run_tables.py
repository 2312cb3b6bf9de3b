"""The figures of a record crossed by coordinates: rows, columns, spreads, floor, and refusals."""

from dataclasses import replace

import pytest

from diffbook_lib import figures, runs
from diffbook_lib.figures import tables
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import presets, records
from diffbook_lib.runs.records import RecordError


def measured(name, value, better="lower", floor=None, **at):
    return Measurement(name, value, 2000, 0, floor, at=at, better=better)


RESULTS = [
    measured("Distance", 10.0 * seed + nfe, floor=1.0, seed=seed, sampler=sampler, nfe=nfe)
    for sampler in ("heun", "em")
    for nfe in (100, 20)
    for seed in (0, 1)
    if (sampler, nfe) != ("em", 100)
]
SHARES = [measured("Share", 0.5, "higher", sampler=sampler, nfe=20) for sampler in ("heun", "em")]


@pytest.fixture
def record(repository):
    run = repository / "run"
    run.mkdir()
    seconds = {f"{what}_seconds": 1.0 for what in ("training", "sampling", "grading")}
    spec = presets.resolve("ladder", "tiny")
    records.write_record(run, spec, [*RESULTS, *SHARES], **seconds)
    return records.read_record(run)


def test_one_measure_is_crossed_by_two_coordinates(record):
    table = runs.crossed(record, "Distance", rows=["sampler"], columns="nfe")
    assert table.columns == ["sampler", "20", "100"]
    assert table.heads == [("", 1), ("nfe", 2)]
    assert table.floor == ["real examples", 1.0, 1.0]
    assert table.better == {"20": "lower", "100": "lower"}
    assert [row[0] for row in table.rows] == ["heun", "em"]
    assert [cell and cell.mean for row in table.rows for cell in row[1:]] == [25, 105, 25, None]
    assert table.rows[0][1].std == pytest.approx(50**0.5)


def test_several_measures_are_the_columns(record):
    table = runs.crossed(record, "Distance", "Share", rows=["sampler"], nfe=20)
    assert table.columns == ["sampler", "Distance", "Share"] and table.heads == []
    assert table.floor == ["real examples", 1.0, None]
    assert table.better == {"Distance": "lower", "Share": "higher"}
    assert [row[2] for row in table.rows] == [0.5, 0.5]


def test_without_floors_there_is_no_such_row(record):
    assert runs.crossed(record, "Share", rows=["sampler"], columns="nfe").floor is None


def test_tables_that_say_too_little_are_refused(record):
    with pytest.raises(RecordError, match="two figures at heun, Distance; name more"):
        runs.crossed(record, "Distance", "Share", rows=["sampler"])
    with pytest.raises(RecordError, match=r"no figure of Share at \{\} has grid, nfe"):
        runs.crossed(record, "Share", rows=["grid"], columns="nfe")
    with pytest.raises(ValueError, match="'nfe' crosses one measure, but"):
        runs.crossed(record, "Share", "Distance", rows=["sampler"], columns="nfe")


@pytest.mark.parametrize("coordinates", [("sampler", "nfe"), ("nfe",)])
def test_a_run_shows_a_table_a_measure_and_one_for_what_was_measured_once(
    record, repository, monkeypatch, coordinates
):
    shown = []
    monkeypatch.setattr(tables, "display", lambda page: shown.append(page.data))
    monkeypatch.setattr(type(record.spec), "coordinates", coordinates)
    found = [m for m in record.results if set(coordinates) <= set(m.at)]
    if coordinates == ("nfe",):
        found = [m for m in found if m.at["sampler"] == "heun"]
        found = [replace(m, at={k: v for k, v in m.at.items() if k != "sampler"}) for m in found]
    record = record.model_copy(update={"results": tuple(found)})
    monkeypatch.setattr(records, "read_record", lambda run: record)
    figures.measured(repository / "run")
    crossed, single = shown
    assert "Distance, 2,000 samples each." in crossed and "25.0 ± 7.1" in crossed
    assert "Share" in single and "Distance" not in single


def test_figures_of_the_seeds_and_the_places(record):
    assert runs.values(record, "Distance", sampler="em", nfe=20) == [20, 30]
    assert runs.places(record, "Distance", "nfe") == [100, 20]
    with pytest.raises(RecordError, match="holds no"):
        runs.values(record, "Distance", sampler="ddim")
