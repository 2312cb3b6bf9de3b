"""The golden numbers of `golden/edm2.json`: what the authors' and two other codes compute.

Any other file of the same schema can stand in its place: DIFFBOOK_GOLDEN names the folder.
"""

import copy
import json
import os
from fnmatch import fnmatch
from pathlib import Path

import golden_edm2_averages
import golden_edm2_networks
import pytest
import torch
from elsewhere import loaded_with
from golden_edm2_networks import resolved

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("DIFFBOOK_GOLDEN", OWN))
GOLDEN = json.loads((FOLDER / "edm2.json").read_text())
NAMES = [name for name in GOLDEN if name != "_meta"]
HANDLERS = golden_edm2_networks.HANDLERS | golden_edm2_averages.HANDLERS

# What the file says of itself, in `_meta`.
DOUBLE, SINGLE = {"rtol": 1e-7, "atol": 1e-12}, {"rtol": 1e-4, "atol": 2e-5}
SINGLES = (
    *("normalize_*", "pixel_norm*", "resample", "mp_fourier", "mpconv_*", "mp_linear", "block_*"),
    "edm_precond",
)
NETWORKS = ("precond_tiny", "seed_unet*")
OF_LARGEST = 1e-3  # of the largest number of a whole network's output
OTHERS = {
    "posthoc_coefficients": {"rtol": 1e-7, "atol": 1e-8},
    "lucidrains_solve_weights": {"rtol": 1e-7, "atol": 1e-8},
    "seed_schedule": {"rtol": 1e-5, "atol": 0.0},
}


def handler_of(name):
    found = [handler for pattern, handler in HANDLERS.items() if fnmatch(name, pattern)]
    assert found, f"unknown kind {name!r}; known: {', '.join(HANDLERS)}"
    return found[0]


def limits(name, key, expected):
    one_of = lambda patterns: any(fnmatch(name, pattern) for pattern in patterns)
    if one_of(NETWORKS):
        return {"rtol": 0.0, "atol": OF_LARGEST * float(expected.abs().max())}
    single = one_of(SINGLES) and (name, key) != ("edm_precond", "loss_weight")
    return OTHERS.get(name, SINGLE if single else DOUBLE)


def compare(name, key, actual, expected):
    """Numbers, tensors, and lists and dictionaries of them."""
    if isinstance(actual, dict):
        for part, value in actual.items():
            compare(name, f"{key}.{part}", value, expected[part])
    elif isinstance(actual, list):
        assert len(actual) == len(expected), f"{key}: {len(actual)} for {len(expected)}"
        for part, (value, other) in enumerate(zip(actual, expected, strict=True)):
            compare(name, f"{key}.{part}", value, other)
    elif isinstance(expected, int):
        assert actual == expected, key
    else:
        expected = torch.tensor(expected, dtype=torch.float64)
        actual = torch.as_tensor(actual).double()
        allowed = limits(name, key, expected)
        message = lambda text: f"{name}, {key}: {text}"
        torch.testing.assert_close(actual, expected, **allowed, msg=message)


def check(name, golden):
    outputs = handler_of(name)(resolved(name, golden))
    assert outputs, f"nothing of {name} is compared"
    for key, actual in outputs.items():
        compare(name, key, actual, golden[name][key])


def test_the_file_holds_entries():
    assert NAMES, f"{FOLDER / 'edm2.json'} holds no entries"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    check(name, GOLDEN)


# The comparison itself, on the numbers of this folder.

FILE = json.loads((OWN / "edm2.json").read_text())


def change_first(values, change, compared):
    """The nested lists and dictionaries `values` with `change` applied to the first number that
    is `compared`."""
    if isinstance(compared, dict):
        key = next(iter(compared))
        return values | {key: change_first(values[key], change, compared[key])}
    if isinstance(values, list):
        first = compared[0] if isinstance(compared, list) else compared
        return [change_first(values[0], change, first), *values[1:]]
    return change(values)


@pytest.mark.parametrize("name", [name for name in FILE if name != "_meta"])
def test_a_changed_number_is_noticed(name):
    outputs = handler_of(name)(resolved(name, FILE))
    for key, actual in outputs.items():
        expected = change_first(FILE[name][key], lambda value: 1.01 * value + 0.01, actual)
        with pytest.raises(AssertionError):
            compare(name, key, actual, expected)


def this_file_on(folder, entries, monkeypatch):
    """This file as it is when DIFFBOOK_GOLDEN names a folder with these entries."""
    return loaded_with(__file__, {"_meta": {}, **entries}, folder, monkeypatch)


def test_another_folder_is_read_and_checked(tmp_path, monkeypatch):
    good = FILE["block_dec_up"]
    changed = copy.deepcopy(FILE["mp_silu"])
    changed["y"][-1] += 1e-4
    entries = {"block_dec_down": good, "mp_silu": changed, "shape": {"y": 1}}
    there = this_file_on(tmp_path, entries, monkeypatch)
    there.test_the_file_holds_entries()
    assert [*entries] == there.NAMES
    there.test_golden("block_dec_down")
    with pytest.raises(AssertionError, match="not close"):
        there.test_golden("mp_silu")
    with pytest.raises(AssertionError, match="unknown kind 'shape'"):
        there.test_golden("shape")


def test_a_file_without_entries_fails(tmp_path, monkeypatch):
    there = this_file_on(tmp_path, {}, monkeypatch)
    with pytest.raises(AssertionError, match="holds no entries"):
        there.test_the_file_holds_entries()
