"""The golden numbers of `golden/constrained.json`: dual problems solved in 40-digit arithmetic.

Any other file of the same schema can stand in its place: DIFFBOOK_GOLDEN names the folder.
"""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from elsewhere import loaded_with

from diffbook_lib import constrained
from diffbook_lib.constrained import Ascent, KLProblem, mixture_weights
from diffbook_lib.diffusion import DDPM
from diffbook_lib.exact import GaussianMixture

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("DIFFBOOK_GOLDEN", OWN))
GOLDEN = json.loads((FOLDER / "constrained.json").read_text())
DIAGNOSTICS = {"slsqp_primal_value", "lam_error_last"}  # of how the numbers were made


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def discrete(i):
    return KLProblem.discrete(f64(i["q0"]), f64(i["q"]), f64(i["b"]), i.get("alpha", 0.0))


def world(components):
    weights, means, stds = f64(components).T
    return GaussianMixture(means[:, None], stds[:, None, None] ** 2, weights)


def worlds(i):
    return [world(i["q0"]), *map(world, i["q"])]


# One function a kind: (inputs, outputs of the file) -> {output name: value}. Of the outputs only
# those that say where to compute are read.


def discrete_kl(i, wanted):
    problem = discrete(i)
    found = constrained.solve(problem)
    points = []
    for row in wanted["dual_grid"]:
        lam = f64(row["lam"])
        values = {"g": problem.dual(lam), "grad": problem.violation(lam)}
        points.append({"lam": lam, "q_mix": problem.optimum(lam)} | values)
    return {
        "lam_star": found.lam,
        "p_star": problem.optimum(found.lam),
        "primal_value": found.primal,
        "dual_value": found.dual,
        "constraint_kl": found.losses[1:],
        "active": found.active,
        "slack": found.slack,
        "mixture_weights": mixture_weights(found.lam),
        "dual_grid": points,
    }


def resilient_discrete(i, wanted):
    problem = discrete(i)
    found = constrained.solve(problem)
    return {
        "lam_star": found.lam,
        "p_star": problem.optimum(found.lam),
        "r_star": found.relaxation,
        "constraint_kl": found.losses[1:],
        "base_kl": found.losses[0],
        "primal_value": found.primal,
        "dual_value": found.dual,
    }


def dual_ascent_trace(i, wanted):
    problem, rule = discrete(i), Ascent(i["eta"], i["alpha"])
    steps = max(row["k"] for row in wanted["trace"])
    path = constrained.ascend(problem, rule, steps, f64(i["lam0"]))
    assert path.end.certified()
    trace = []
    for k in (row["k"] for row in wanted["trace"]):
        losses = {"base_kl": path.losses[k, 0], "constraint_kl": path.losses[k, 1:]}
        trace.append({"k": k, "lam": path.lam[k], "g": path.dual[k]} | losses)
    return {"trace": trace, "lam_star": constrained.solve(problem).lam}


def class_balance(i, wanted):
    minority, b = i["minority"], f64(i["b"])
    found = constrained.class_balance(f64(i["pi"]), minority, b)
    lagrangian = found.value + found.lam @ (-found.frequencies[minority].log() - b)
    distance = (found.frequencies - 1 / len(i["pi"])).abs().sum() / 2
    return {
        "lam_star": found.lam,
        "class_freq": found.frequencies,
        "active": found.active,
        "primal_value": found.value,
        "dual_value": lagrangian,
        "constraint_kl": -found.frequencies[minority].log(),
        "total_variation_to_uniform": distance,
    }


def feasibility(i, wanted):
    problem = discrete(i)
    found = constrained.feasibility(problem)
    return {
        "margin": found.margin,
        "weights": found.weights,
        "p_center": found.weights @ f64(i["q"]),
        "feasible": found.margin < 0,
    }


def lagrangian_identity(i, wanted):
    problem, lam, log_p = discrete(i), f64(i["lam"]), f64(i["p"]).log()
    entropies = constrained.entropy(problem.log_q)
    mixture = problem.optimum(lam)
    return {
        "lagrangian": problem.lagrangian(log_p, lam),
        "g": problem.dual(lam),
        "kl_mix_p": constrained.kl(mixture.log(), log_p),
        "q_mix": mixture,
        "H_mix": constrained.entropy(mixture.log()),
        "H_q0": entropies[0],
        "H_q": entropies[1:],
    }


def minmax_composition(i, wanted):
    """Without an objective: of several models one, the worst off of which is as well off as can
    be. The first of them stands as the objective and is not used."""
    q = f64(i["q"])
    entropies = constrained.entropy(q.log())
    outputs = {}
    for key, b in (("kl", torch.zeros(len(q))), ("ce", -entropies)):
        problem = KLProblem.discrete(q[0], q, b)
        found = constrained.feasibility(problem)
        losses = problem.losses_at(torch.cat([torch.zeros(1), found.weights]))
        per_model = losses[1:] - problem.b
        outputs[key] = {"weights": found.weights, "value": found.margin, "per_model": per_model}
    outputs["ce"]["entropies"] = entropies
    return outputs


def gauss_mixture_1d_kl(i, wanted):
    q0, *q = worlds(i)
    problem = constrained.kl_problem(q0, q, f64(i["b"]))
    found = constrained.solve(problem)
    return {
        "lam_star": found.lam,
        "active": found.active,
        "mixture_weights": mixture_weights(found.lam),
        "primal_value": found.primal,
        "dual_value": found.dual,
        "constraint_kl": found.losses[1:],
        "kl_at_lam0": problem.losses(torch.zeros_like(found.lam)),
    }


def score_gap_identity(i, wanted):
    q, r = world(i["q"]), world(i["r"])
    pair = constrained.kl_problem(r, [q], f64([1.0]))
    levels, weights = constrained.nats_levels(math.exp(-12), math.exp(12), 241)
    gaps = [constrained.noise_gap(q, r, sigma, 2001) for sigma in levels.tolist()]
    return {
        "kl": pair.violation(f64([0.0]))[0] + 1.0,
        "integral": weights @ torch.stack(gaps),
        "eps_gap": [constrained.noise_gap(q, r, s) for s in f64(i["log_sigma"]).exp().tolist()],
    }


def ddpm_simple_loss_1d(i, wanted):
    schedule = DDPM(i["T"], i["beta_start"], i["beta_end"])
    levels = constrained.simple_levels(schedule)
    problem = constrained.noise_problem(worlds(i), *levels, f64(i["b"]), points=2001)
    found = constrained.solve(problem)
    rows = [f64(row["lam"]) for row in wanted["loss_grid"]]
    signal = schedule.alpha_bar()
    return {
        "irreducible_loss": problem.irreducible,
        "loss_at_lam0": problem.losses(torch.zeros_like(found.lam)),
        "lam_star": found.lam,
        "loss_at_lam_star": found.losses,
        "dual_value": found.dual,
        "mixture_weights": mixture_weights(found.lam),
        "loss_grid": [{"lam": lam, "losses": problem.losses(lam)} for lam in rows],
        "abar_first": signal[0],
        "abar_mid": signal[i["T"] // 2],
        "abar_last": signal[-1],
    }


KINDS = {
    function.__name__: function
    for function in (
        *(discrete_kl, resilient_discrete, dual_ascent_trace, class_balance, feasibility),
        *(lagrangian_identity, minmax_composition, gauss_mixture_1d_kl, score_gap_identity),
        ddpm_simple_loss_1d,
    )
}


def compare(key, actual, expected, tol):
    """|actual - expected| <= tol max(1, |expected|); integers and truth values exactly."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys() - DIAGNOSTICS, key
        for part, value in actual.items():
            compare(f"{key}.{part}", value, expected[part], tol)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), f"{key}: {len(actual)} for {len(expected)}"
        for n, (value, other) in enumerate(zip(actual, expected, strict=True)):
            compare(f"{key}[{n}]", value, other, tol)
    elif isinstance(expected, int):
        assert actual == expected, key
    else:
        limit = tol * max(1, abs(expected))
        assert float(actual) == pytest.approx(expected, rel=0, abs=limit), key


def computed(case):
    assert case["kind"] in KINDS, f"unknown kind {case['kind']!r}; known: {', '.join(KINDS)}"
    return KINDS[case["kind"]](case["inputs"], case["outputs"])


def check(case):
    compare(case["id"], computed(case), case["outputs"], case["tol"])


def test_the_file_holds_cases():
    assert GOLDEN["cases"], f"{FOLDER / 'constrained.json'} holds no cases"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_golden(case):
    check(case)


# The comparison itself, on the numbers of this folder.

CASES = json.loads((OWN / "constrained.json").read_text())["cases"]


def numbers(outputs, path=()):
    """Where the compared numbers stand in the nested lists and dictionaries."""
    if isinstance(outputs, dict):
        outputs = {key: value for key, value in outputs.items() if key not in DIAGNOSTICS}
    if isinstance(outputs, dict | list):
        items = outputs.items() if isinstance(outputs, dict) else enumerate(outputs)
        return [place for key, value in items for place in numbers(value, (*path, key))]
    return [path]


def changed(outputs, place, tol):
    """A copy of the outputs with the number at `place` just outside of what is allowed."""
    outputs = copy.deepcopy(outputs)
    *to, last = place
    inner = outputs
    for key in to:
        inner = inner[key]
    value = inner[last]
    moved = not value if isinstance(value, bool) else value + 3 * tol * max(1, abs(value))
    inner[last] = value + 1 if type(value) is int else moved
    return outputs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_every_changed_number_is_noticed(case):
    found = computed(case)
    places = numbers(case["outputs"])
    assert places
    for place in places:
        with pytest.raises(AssertionError):
            compare("", found, changed(case["outputs"], place, case["tol"]), case["tol"])


def this_file_on(folder, cases, monkeypatch):
    """This file as it is when DIFFBOOK_GOLDEN names a folder with these cases."""
    return loaded_with(__file__, {"cases": cases}, folder, monkeypatch)


def test_another_folder_is_read_and_checked(tmp_path, monkeypatch):
    good, wrong, unknown, short = (copy.deepcopy(CASES[0]) for _ in range(4))
    wrong["outputs"]["lam_star"][0] += 1e-6
    unknown["kind"] = "shape"
    short["outputs"]["active"].append(1)
    there = this_file_on(tmp_path, [good, wrong, unknown, short], monkeypatch)
    there.test_the_file_holds_cases()
    good, wrong, unknown, short = there.GOLDEN["cases"]
    there.test_golden(good)
    with pytest.raises(AssertionError, match="lam_star"):
        there.test_golden(wrong)
    with pytest.raises(AssertionError, match="unknown kind 'shape'"):
        there.test_golden(unknown)
    with pytest.raises(AssertionError, match="active"):
        there.test_golden(short)


def test_a_file_without_cases_fails(tmp_path, monkeypatch):
    there = this_file_on(tmp_path, [], monkeypatch)
    with pytest.raises(AssertionError, match="holds no cases"):
        there.test_the_file_holds_cases()


def test_all_kinds_are_in_the_file():
    assert {case["kind"] for case in CASES} == KINDS.keys()
