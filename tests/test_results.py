"""The results table: kept records beside published figures."""

import pytest

from diffbook_lib import specs
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import folder, presets, records, results
from diffbook_lib.runs.records import RecordError

PUBLISHED = """\
- {method: ladder, figure: FID, value: "2.25", source: "Ladder, Table 1", tag: page}
- {method: counts, figure: bpd, value: "2.7", source: "Counts, Table 2", tag: paper}
"""


@pytest.fixture
def published(repository):
    (repository / "results").mkdir()
    file = repository / "results" / "published.yaml"
    file.write_text(PUBLISHED)
    return file


def write(run, spec, found):
    folder.open_run(run, spec)
    seconds = {"training_seconds": 12.4, "sampling_seconds": 3.0, "grading_seconds": 0.5}
    records.write_record(run, spec, found, **seconds)
    return run


def figures(seeds=(), **at):
    distance = Measurement("Distance", 3.5, 2000, 0, 3.2, at={"nfe": 5, **at})
    over = [
        Measurement("Spread", 4.0 + seed, 2000, 0, at={"seed": seed, "nfe": nfe})
        for seed in seeds
        for nfe in (5, 20)
    ]
    return [distance, *over]


def test_kept_records_stand_beside_published_figures(repository, published):
    spec = presets.resolve("ladder", "tiny")
    run = write(repository / "run", spec, figures(part="a"))
    assert results.keep(run) == repository / "results" / "ladder" / "tiny.json"
    ours, theirs = results.rows("ladder")
    assert ours[:7] == ("ladder", True, "Distance", "nfe 5, part a", "3.5", "3.2", "2000")
    assert ours.scale == "mixture9, 6 steps of 12" and "12 s of training" in ours.hardware
    assert ours.source == "results/ladder/tiny.json"
    assert (theirs.ours, theirs.value, theirs.source) == (False, "2.25", "Ladder, Table 1 [page]")
    table = results.table("ladder")
    assert "Counts" not in table and table.index("recorded runs") < table.index("published figures")
    assert "  none" in results.table("counts")


def test_seeds_make_one_line_with_mean_and_spread(repository, published):
    spec = presets.resolve("ladder", "sweep")
    results.keep(write(repository / "run", spec, figures(seeds=(0, 1, 2))))
    rows = [row for row in results.rows("ladder") if row.ours]
    assert [(row.figure, row.at, row.value, row.samples) for row in rows] == [
        ("Distance", "nfe 5", "3.5", "2000"),
        ("Spread", "nfe 5", "5 ± 1", "2000, 3 seeds"),
        ("Spread", "nfe 20", "5 ± 1", "2000, 3 seeds"),
    ]


def test_one_seed_has_no_spread_and_shows_its_number(repository, published):
    spec = presets.resolve("ladder", "tiny")
    results.keep(write(repository / "run", spec, figures(seeds=(4,))))
    row = next(row for row in results.rows("ladder") if row.figure == "Spread")
    assert (row.at, row.value, row.samples) == ("seed 4, nfe 5", "8", "2000")


def test_only_the_preset_itself_is_kept(repository):
    spec = presets.resolve("ladder", "tiny", {"steps": 9, "ema": ["classic-0.5"]})
    run = write(repository / "run", spec, figures())
    with pytest.raises(RecordError) as error:
        results.keep(run)
    changed = str(error.value).splitlines()[1:]
    assert changed == [
        "  steps: preset 6, run 9",
        "  ema: preset ('power-0.1', 'classic-0.9'), run ('classic-0.5',)",
    ]
    with pytest.raises(RecordError, match="not complete"):
        results.keep(repository / "nowhere")
    assert not (repository / "results").exists()


def test_a_kept_record_is_found_and_has_its_picture_beside_it(repository):
    run = write(repository / "run", presets.resolve("ladder", "tiny"), figures())
    with pytest.raises(RecordError, match="no run of ladder tiny is kept"):
        results.recorded("ladder", "tiny")
    kept = results.keep(run)
    assert not kept.with_suffix(".png").exists()
    (run / "figures").mkdir()
    (run / "figures" / "samples.png").write_bytes(b"picture")
    results.keep(run)
    assert kept.with_suffix(".png").read_bytes() == b"picture"
    assert results.recorded("ladder", "tiny") == records.read_record(run)
    with pytest.raises(specs.SpecError, match="refused"):
        results.recorded("ladder", "../tiny")


def test_runs_of_this_checkout_are_listed_on_request(repository, published):
    spec = presets.resolve("ladder", "tiny")
    write(folder.default_folder(spec), spec, figures())
    assert [row.source for row in results.rows("ladder")] == ["Ladder, Table 1 [page]"]
    found = results.rows("ladder", local=True)
    assert found[0].source == "runs/ladder-tiny/record.json" and len(found) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('- {method: a, figure: FID, value: "2", source: memory, tag: recalled}\n', "tag"),
        ("- {method: a\n", "published.yaml"),
        ("3\n", "published.yaml"),
    ],
)
def test_a_list_of_published_figures_that_is_wrong_is_refused(published, text, words):
    published.write_text(text)
    with pytest.raises(RecordError, match=words):
        results.published("a")


def test_no_list_of_published_figures_is_an_empty_one(repository):
    assert results.published("ladder") == []


SHIPPED = sorted(folder.parent.name for folder in presets.root().glob("nbs/presets/*/smoke.yaml"))


@pytest.mark.parametrize("method", SHIPPED)
def test_shipped_figures_are_valid(method):
    assert results.published(method)


@pytest.mark.parametrize("method", SHIPPED)
def test_shipped_records_are_valid(method):
    assert results.table(method)
