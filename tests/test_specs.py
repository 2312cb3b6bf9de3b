"""Specifications: every parameter once, checked, refused with its name and what is allowed."""

import inspect
import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffbook_lib import specs
from diffbook_lib.specs import RunSpec, SpecError, base, cld, parts

METHODS = [name for name in specs.methods() if name not in ("counts", "ladder")]
GOOD = {"preset": "toy", "dataset": "mixture9", "steps": 10, "batch": 8, "lr": 1e-3}
CLASSES = [
    found
    for module in (base, parts, *(inspect.getmodule(specs.find(name)) for name in METHODS))
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, RunSpec)
]


def make(method="cld", **changes):
    return specs.make(method, {**GOOD, **changes})


def refusal(method="cld", **changes) -> str:
    with pytest.raises(SpecError) as error:
        make(method, **changes)
    return str(error.value)


def test_methods_are_found_by_name():
    assert specs.find("cld") is cld.Spec and "cld" in specs.methods()
    assert not {"base", "explain", "parts"} & set(specs.methods())
    for wrong, near in (("cdl", "'cld'"), ("ladde", "'ladder'")):
        with pytest.raises(SpecError, match=rf"unknown method '{wrong}'.*did you mean {near}"):
            specs.find(wrong)
    with pytest.raises(SpecError, match="unknown method 'base'"):
        specs.find("base")
    assert type(make("counts")).__module__ == "diffbook_lib.specs.counts"
    with pytest.raises(SpecError, match="method is 'counts' in a specification of 'cld'"):
        specs.make("cld", {**GOOD, "method": "counts"})


def test_a_specification_holds_every_value_frozen():
    spec = make(lr=1, multipliers=[1, 2, 2])
    assert spec.method == "cld" and spec.lr == 1.0 and spec.multipliers == (1, 2, 2)
    with pytest.raises(ValueError):
        spec.lr = 2.0


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_says_what_it_is_and_hides_no_other(cls):
    assert [name for name, field in cls.model_fields.items() if not field.description] == []
    declared = [
        name
        for owner in cls.__mro__
        if issubclass(owner, RunSpec)
        for name in inspect.get_annotations(owner)
        if name != "coordinates"
    ]
    assert sorted(declared) == sorted(set(declared))


def test_the_classes_of_all_specifications_are_looked_at():
    assert {RunSpec, parts.UNet, parts.EDMNoise, cld.Spec} <= set(CLASSES)


@given(
    lr=st.floats(1e-12, 1e3),
    steps=st.integers(1, 10**12),
    multipliers=st.lists(st.integers(1, 9), min_size=1),
    gamma=st.floats(1e-9, 1),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    rates=st.lists(st.floats(1e-9, 1), min_size=1, max_size=3, unique=True),
    nfe=st.lists(st.integers(2, 99), min_size=1, max_size=3, unique=True),
)
def test_a_specification_survives_json(lr, steps, multipliers, gamma, seeds, rates, nfe):
    spec = make(
        **{"lr": lr, "steps": steps, "multipliers": multipliers, "gamma": gamma},
        ema=["power-0.1", "classic-0.9"],
        table={"nfe": nfe, "sampler": ["em", "sscs"]},
        sweep={"seed": seeds, "M": rates, "mixed_score": [True, False], "network": ["mlp"]},
    )
    assert specs.make("cld", json.loads(spec.model_dump_json())) == spec


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
        ({"Lr": 1.0}, ["unknown parameter 'Lr'", "did you mean 'lr'?"]),
        ({"multipliers": [1, "2"]}, ["multipliers[1]", "'2'"]),
        ({"multipliers": []}, ["multipliers", "at least 1 item"]),
        ({"multipliers": 2}, ["multipliers", "list"]),
        ({"accumulate": 3}, ["batch is 8", "accumulate = 3"]),
        ({"warmup_steps": 3, "warmup_images": 9}, ["warmup_steps is 3", "images 9", "one of them"]),
        ({"ema": "power-0.1"}, ["ema", "'power-0.1'", "list"]),
        ({"ema": []}, ["ema is []", "at least 1 item"]),
        ({"ema": ["power-0.1", "powr-0.1"]}, ["ema: 'powr-0.1' is no average", "power-SIGMA_REL"]),
        ({"ema": ["classic-x"]}, ["ema: 'classic-x' is no average", "classic-DECAY"]),
        ({"ema": ["classic-1"]}, ["ema: the decay is 1.0", "[0, 1)"]),
        ({"ema": ["power-0.3"]}, ["ema: sigma_rel is 0.3", "0.288"]),
        ({"ema": ["halflife-9-ramp-0"]}, ["ema: the ramp is 0.0", "positive"]),
        ({"ema": [3]}, ["ema[0] is 3", "string"]),
        ({"ema": ["power-0.1"] * 2}, ["ema names an average twice", "power-0.1"]),
        ({"snapshot_precision": "fp8"}, ["snapshot_precision", "'fp32' or 'fp16'"]),
        ({"preset": "../toy"}, ["'../toy'", "without '/' and '..'"]),
        ({"sde": "vpsde", "sampler": "sscs"}, ["'vpsde'", "ancestral", "sampler is 'sscs'"]),
        ({"sampler": "heun"}, ["sde = 'cld'", "em, sscs, sscs2, ode", "sampler is 'heun'"]),
        ({"sde": "vpsde", "sampler": "heun", "nfe": 3}, ["nfe of 4 or more", "nfe is 3"]),
    ],
)
def test_bad_values_are_named(changes, words):
    message = refusal(**changes)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 1


def test_a_missing_value_is_named_with_its_meaning():
    with pytest.raises(SpecError, match=r"^lr is missing \(highest learning rate\)$"):
        specs.make("cld", {name: value for name, value in GOOD.items() if name != "lr"})


def test_all_bad_values_are_listed_at_once():
    assert len(refusal(lr="1e-3", steps=-1, stepz=2).splitlines()) == 3


@given(st.from_regex(r"[1-9][0-9]{0,3}[eE][+-]?[0-9]{1,2}", fullmatch=True))
def test_advice_for_numbers_in_text_is_a_number_to_yaml(text):
    assert isinstance(yaml.safe_load(text), str)
    advice = refusal(lr=text).split("write ")[-1].split(" or ")[0]
    assert yaml.safe_load(advice) == float(text)


@given(st.sampled_from(sorted(cld.Spec.model_fields)), st.data())
def test_names_with_a_letter_missing_find_a_neighbour(name, data):
    if len(name) < 4:
        return
    at = data.draw(st.integers(0, len(name) - 1))
    typo = name[:at] + name[at + 1 :]
    if typo not in cld.Spec.model_fields:
        assert "did you mean" in refusal(**{typo: 1})


def test_averages_are_named_in_one_form():
    assert make().ema == ("classic-0.999",)
    spellings = ["power-.10", "classic-0.90", "halflife-5e5", "halflife-500000-ramp-0.050"]
    names = ("power-0.1", "classic-0.9", "halflife-500000", "halflife-500000-ramp-0.05")
    assert make(ema=spellings).ema == names
    assert make(ema=spellings) == make(ema=names)
    assert "ema names an average twice" in refusal(ema=["power-0.1", "power-0.10"])


@pytest.mark.parametrize(
    ("what", "grid", "words"),
    [
        ("sweep", {"sed": [0]}, ["sweep names sed", "did you mean 'seed'?"]),
        ("table", {"nfe": [5], "smpler": ["em"]}, ["table names smpler", "grid, nfe, sampler"]),
        ("table", {"lr": [0.1]}, ["table names lr"]),
        *(("sweep", {name: ["a"]}, [f"sweep names {name}"]) for name in ("preset", "data_hash")),
        ("sweep", {"seed": [0, -1]}, ["sweep: seed is -1", "greater than or equal to 0"]),
        ("sweep", {"lr": [0.1, "1e-3"]}, ["sweep: lr is '1e-3'", "write 1.0e-3"]),
        ("table", {"sampler": ["em", "emm"]}, ["table: sampler is 'emm'", "did you mean 'em'"]),
        ("sweep", {"batch": [8, 9]}, ["sweep: batch is 9", "accumulate = 4"]),
        ("sweep", {"seed": [2, 3, 2]}, ["sweep holds a value twice", "(2, 3, 2)"]),
        ("sweep", {"seed": []}, ["sweep[seed]", "at least 1 item"]),
        ("sweep", {"seed": 3}, ["sweep[seed] is 3", "list"]),
        ("sweep", [1], ["sweep is [1]", "dictionary"]),
        (
            "sweep",
            {"seed": list(range(40)), "width": list(range(1, 27))},
            ["1040 combinations", "at most 1000"],
        ),
    ],
)
def test_grids_are_refused_with_the_name_and_the_value(what, grid, words):
    message = refusal(**{what: grid}, accumulate=4)
    assert all(word in message for word in words), message


def test_members_are_specifications_of_their_own():
    spec = make(sweep={"seed": [3, 4], "width": [8, 16]}, table={"nfe": [5]})
    members = spec.members()
    assert members[0] == {"seed": 3, "width": 8} and members[1] == {"seed": 3, "width": 16}
    assert len(members) == 4
    own = spec.member(members[3])
    assert type(own) is type(spec)
    assert (own.seed, own.width, own.sweep, own.table) == (4, 16, {}, {"nfe": (5,)})
    assert own == make(seed=4, width=16, table={"nfe": [5]})
    assert own.members() == [{}] and own.member({}) == own


def test_a_table_must_be_allowed_for_every_member():
    grids = {"sweep": {"sde": ["cld", "vpsde"]}, "table": {"sampler": ["em", "sscs"]}}
    message = refusal(sampler="em", **grids)
    assert message.startswith("sweep: ") and "'vpsde'" in message and "'sscs'" in message


def test_cells_start_with_the_runs_own_way_of_sampling():
    spec = make(sampler="em", nfe=20, table={"sampler": ["sscs", "em"], "nfe": [10, 20]})
    cells = spec.cells()
    assert cells[0] == {"sampler": "em", "grid": "quadratic", "nfe": 20}
    assert [(c["sampler"], c["nfe"]) for c in cells[1:]] == [("sscs", 10), ("sscs", 20), ("em", 10)]
    assert all(cell["grid"] == "quadratic" for cell in cells)
    assert spec.calls() == 20 + 10 + 20 + 10
    assert make("counts").cells() == [{}] and make("counts").calls() == 1


def test_a_specification_shows_itself_as_a_table():
    shown = make(ema=["power-0.1", "classic-0.9"], sweep={"seed": [0, 1], "lr": [0.1]})
    lines = shown._repr_markdown_().splitlines()
    assert lines[:2] == ["| parameter | value | meaning |", "| :- | :- | :- |"]
    assert "| `lr` | 0.001 | highest learning rate |" in lines
    assert any(line.startswith("| `ema` | power-0.1, classic-0.9 | ") for line in lines)
    assert any(line.startswith("| `sweep` | seed: 0, 1; lr: 0.1 | ") for line in lines)
    names = [line.split("`")[1] for line in lines[2:]]
    assert names == list(type(shown).model_fields)
    assert r"| `path` | a\|b |" in make(path="a|b")._repr_markdown_()
