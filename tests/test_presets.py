import inspect
import json
import math

import miniature
import pytest
import yaml
from diffbook_lib.presets import CLDSpec, PresetError, RunSpec
from hypothesis import given
from hypothesis import strategies as st

from diffbook_lib import presets

GOOD = {
    "preset": "toy",
    "dataset": "mixture9",
    "steps": 10,
    "batch": 8,
    "lr": 1e-3,
    "mixed_score": True,
    "network": "mlp",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    return miniature.write(tmp_path)


def refusal(**changes) -> str:
    with pytest.raises(PresetError) as error:
        presets.spec("cld", {**GOOD, **changes})
    return str(error.value)


def test_spec_holds_every_value_frozen():
    spec = presets.spec("cld", {**GOOD, "lr": 1, "multipliers": [1, 2, 2]})
    assert spec.method == "cld" and spec.lr == 1.0 and spec.multipliers == (1, 2, 2)
    with pytest.raises(ValueError):
        spec.lr = 2.0


@pytest.mark.parametrize("cls", [RunSpec, *presets.SPECS.values()])
def test_every_field_says_what_it_is(cls):
    assert all(field.description for field in cls.model_fields.values())
    own = set(inspect.get_annotations(cls))
    inherited = set().union(*(inspect.get_annotations(base) for base in cls.__mro__[1:]))
    assert not own & inherited - {"model_config"}, "a method's field hides a shared one"


@given(
    lr=st.floats(1e-12, 1e3),
    steps=st.integers(1, 10**12),
    multipliers=st.lists(st.integers(1, 9), min_size=1),
    gamma=st.floats(1e-9, 1),
)
def test_spec_survives_json(lr, steps, multipliers, gamma):
    changes = {"lr": lr, "steps": steps, "multipliers": multipliers, "gamma": gamma}
    spec = presets.spec("cld", {**GOOD, **changes})
    assert presets.spec("cld", json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": "1e-3"}, ["lr", "'1e-3'", "text", "1.0e-3"]),
        ({"steps": "1e5"}, ["steps", "'1e5'", "100000"]),
        ({"lr": "0.1"}, ["lr", "without quotes"]),
        ({"steps": -3}, ["steps", "-3", "greater than or equal to 1"]),
        ({"steps": 2.5}, ["steps", "2.5", "integer"]),
        ({"steps": 100.0}, ["steps", "write 100"]),
        ({"batch": True}, ["batch", "True", "integer"]),
        ({"lr": math.nan}, ["lr", "nan", "finite"]),
        ({"beta0": math.inf}, ["beta0", "inf", "finite"]),
        ({"lr": None}, ["lr", "None", "number"]),
        ({"network": "unett"}, ["network", "'mlp', 'plain-mlp'", "did you mean 'unet'?"]),
        ({"stepz": 3}, ["unknown parameter 'stepz'", "did you mean 'steps'?"]),
        ({"m": 1.0}, ["unknown parameter 'm'", "did you mean 'M'?"]),
        ({"multipliers": [1, "2"]}, ["multipliers[1]", "'2'"]),
        ({"multipliers": []}, ["multipliers", "at least 1 item"]),
        ({"multipliers": 2}, ["multipliers", "list"]),
        ({"accumulate": 3}, ["batch is 8", "accumulate = 3"]),
        ({"ema": "power"}, ["ema_value is 0.999", "0.288"]),
        ({"preset": "../toy"}, ["'../toy'", "without '/' and '..'"]),
        ({"method": "edm2"}, ["'edm2'", "'cld'"]),
    ],
)
def test_bad_values_are_named(changes, words):
    message = refusal(**changes)
    assert all(word in message for word in words), message


def test_all_bad_values_are_listed_at_once():
    assert len(refusal(lr="1e-3", steps=-1, stepz=2).splitlines()) == 3


@given(st.from_regex(r"[1-9][0-9]{0,3}[eE][+-]?[0-9]{1,2}", fullmatch=True))
def test_advice_for_numbers_in_text_is_a_number_to_yaml(text):
    assert isinstance(yaml.safe_load(text), str)
    advice = refusal(lr=text).split("write ")[-1].split(" or ")[0]
    assert yaml.safe_load(advice) == float(text)


@given(st.sampled_from(sorted(CLDSpec.model_fields)), st.data())
def test_names_with_a_letter_missing_find_a_neighbour(name, data):
    if len(name) < 4:
        return
    at = data.draw(st.integers(0, len(name) - 1))
    typo = name[:at] + name[at + 1 :]
    if typo not in CLDSpec.model_fields:
        assert "did you mean" in refusal(**{typo: 1})


def test_unknown_method_and_preset(repository):
    with pytest.raises(PresetError, match=r"'cdl'.*did you mean 'cld'"):
        presets.names("cdl")
    with pytest.raises(PresetError, match=r"'tinny'.*small, tiny.*did you mean 'tiny'"):
        presets.read("cld", "tinny")


@pytest.mark.parametrize("name", ["a/b", "../tiny", "..", "/etc/passwd", "a\\b", "", ".hidden"])
def test_names_that_leave_their_folder_are_refused(repository, name):
    with pytest.raises(PresetError, match="refused"):
        presets.read("cld", name)


def test_presets_are_read_safely(repository):
    folder = repository / "nbs" / "presets" / "cld"
    (folder / "evil.yaml").write_text("preset: !!python/object/apply:os.getcwd []\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "copy.yaml").write_text("preset: tiny\n")
    for name, words in [("evil", "plain YAML"), ("list", "parameter: value"), ("copy", "own name")]:
        with pytest.raises(PresetError, match=words):
            presets.read("cld", name)


def test_names_summary_and_resolution(repository):
    assert presets.names("cld") == ["small", "tiny"]
    assert presets.summary("cld", "small") == "A little more"
    spec = presets.resolve("cld", "small", {"batch": 16})
    assert (spec.preset, spec.steps, spec.lr, spec.batch, spec.width) == ("small", 40, 1e-3, 16, 8)


def test_parameters_cell_is_read_without_running_it(repository):
    notebook = presets.notebook_path("cld")
    assert presets.defaults(notebook)["steps"] == 6
    presets.check_parameters(notebook, {"steps": 1, "out": "x"})
    with pytest.raises(PresetError, match="unknown parameter 'stesp'; did you mean 'steps'"):
        presets.check_parameters(notebook, {"stesp": 1})
    text = notebook.read_text().replace("steps: int = 6", "steps: int = print(6)")
    notebook.write_text(text)
    with pytest.raises(PresetError, match=r"steps is 'print\(6\)'"):
        presets.defaults(notebook)


def namespace(**more) -> dict:
    """The globals of a notebook after its parameters cell, as IPython has them."""
    return {
        **{"__name__": "__main__", "_": "", "_i1": "x", "In": ["", "x"], "Out": {}},
        **{"math": math, "exit": exit, "Path": PresetError, "out": "", "processes": 1},
        **GOOD,
        **more,
    }


def test_collect_passes_over_what_is_no_parameter():
    assert presets.collect("cld", namespace()) == presets.spec("cld", GOOD)


@pytest.mark.parametrize("wrong", [3, 0.5, "a", True, None, [1], (1,), {}])
def test_collect_stops_at_a_mistyped_parameter(wrong):
    with pytest.raises(PresetError, match=r"'stepz'.*did you mean 'steps'"):
        presets.collect("cld", namespace(stepz=wrong))


def test_root_needs_no_variable(monkeypatch):
    monkeypatch.delenv("DIFFBOOK_ROOT", raising=False)
    assert (presets.root() / "nbs" / "presets").is_dir()


SHIPPED = [
    (method, path.stem)
    for method in presets.SPECS
    for path in sorted((presets.root() / "nbs" / "presets" / method).glob("*.yaml"))
]


@pytest.mark.parametrize(("method", "name"), SHIPPED)
def test_shipped_presets_resolve_and_say_what_they_are(method, name):
    assert presets.resolve(method, name).preset == name
    assert presets.summary(method, name)


@pytest.mark.parametrize("method", presets.SPECS)
def test_shipped_notebooks_show_every_parameter(method):
    shown = presets.defaults(presets.notebook_path(method))
    fields = set(presets.SPECS[method].model_fields) - {"method"}
    assert set(shown) == fields | set(presets.EXECUTION)
