"""The cells of a run notebook by their tags, executed without Jupyter."""

import pytest

from diffbook_lib.runs import cells, jobs, presets
from diffbook_lib.runs.task import Task
from diffbook_lib.specs import SpecError


@pytest.fixture
def spec(repository):
    return presets.resolve("counts", "tiny")


def test_cells_are_found_by_any_of_their_tags(spec):
    notebook = presets.notebook_path("counts")
    tagged = lambda *tags: cells.tagged(notebook, *tags)
    assert len(tagged("data")) == len(tagged("network")) == len(tagged("sample")) == 1
    assert len(tagged("build")) == 3 and tagged("build")[:1] == tagged("data")
    assert tagged("sample", "build") == [*tagged("build"), *tagged("sample")]  # as they stand
    assert tagged("data", "build") == tagged("build")  # each once
    assert tagged("sampling") == []
    assert tagged("parameters")[0].startswith('preset: str = "tiny"\n')


def test_text_cells_are_none(spec):
    notebook = presets.notebook_path("counts")
    text = notebook.read_text().replace('"cell_type": "code"', '"cell_type": "markdown"')
    notebook.write_text(text)
    assert cells.tagged(notebook, "build") == []


def test_what_cells_define_is_for_one_specification(spec):
    names = cells.execute(spec, "build", "sample")
    assert isinstance(names["task"], Task) and names["task"].net is names["net"]
    assert names["spec"] is spec and callable(names["draw"])
    other = cells.execute(spec, "build")
    assert other["net"] is not names["net"] and "draw" not in other
    assert cells.execute(spec, "data").keys() & {"dataset", "net"} == {"dataset"}


def test_names_that_cells_must_define(spec):
    found = {"a": 1, "b": None}
    assert cells.defined(found, "b", "a") == [None, 1]
    with pytest.raises(SpecError, match="define no task, draw"):
        cells.defined(found, "task", "a", "draw")


def test_cells_that_are_missing_are_named(spec):
    with pytest.raises(SpecError, match=r"counts\.ipynb has no cell tagged sampling or drawing"):
        cells.execute(spec, "sampling", "drawing")


def test_a_notebook_without_a_task_is_refused(repository, spec):
    notebook = presets.notebook_path("counts")
    notebook.write_text(notebook.read_text().replace("task = runs.Task(", "tusk = runs.Task("))
    run = repository / "run"
    run.mkdir()
    (run / "spec.json").write_text(spec.model_dump_json())
    with pytest.raises(SpecError, match="define no task"):
        jobs.train_folder(run)


def test_an_error_in_a_cell_names_notebook_tags_and_line(spec):
    notebook = presets.notebook_path("counts")
    notebook.write_text(notebook.read_text().replace("dataset = data.", "dataset = dota."))
    with pytest.raises(NameError) as error:
        cells.execute(spec, "data")
    place = error.traceback[-1]
    assert str(place.path).endswith("counts.ipynb, ('data',) cell 1") and place.lineno == 2
