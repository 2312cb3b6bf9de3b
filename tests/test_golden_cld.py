"""The golden numbers of `golden/cld.json`: what the authors' code computes.

Any other file of the same schema can stand in its place: DIFFBOOK_GOLDEN names the folder.
"""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from elsewhere import loaded_with
from torch.autograd.functional import jacobian

from diffbook_lib import cld, metrics, rng
from diffbook_lib.cld import CLD, Langevin, State
from diffbook_lib.diffusion import VPSDE

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("DIFFBOOK_GOLDEN", OWN))
GOLDEN = json.loads((FOLDER / "cld.json").read_text())
TOLERANCES = GOLDEN.get("tolerances", {}).get("numeric", {})


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def process_of(case, **changes):
    names = {"M", "Gamma", "beta0", "beta1", "gamma", "eps_num", "objective"}
    return CLD(**{name: case["params"][name] for name in names & case["params"].keys()}, **changes)


def state_of(inputs):
    return State(f64(inputs["x"]), f64(inputs["v"]))


def knows_velocity(process):
    """Whether the kernel is that of denoising score matching, given (x_0, v_0)."""
    return process.objective == "dsm"


def linear_score(inputs):
    """The network's place in the sampler cases: -(a v + b x + c t)."""
    s = inputs["score"]
    assert s["form"] == "-(a*v+b*x+c*t_forward)"
    return lambda state, t: -(s["a"] * state.v + s["b"] * state.x + s["c"] * t[:, None])


def forward_drift(process, state, t):
    """beta A (x, v), with A as the derivative of the flow at 0, and the diffusion of v."""
    zero = torch.zeros((), dtype=torch.float64)
    A, noise = jacobian(process.flow, zero), jacobian(process.noise_covariance, zero)
    beta = process.beta(t)[:, None]
    x, v = beta * (A[0] * state.x + A[1] * state.v), beta * (A[2] * state.x + A[3] * state.v)
    return State(x, v), (beta * noise[2]).sqrt().expand_as(v)


# One function a kind: case -> {output name: tensor}.


def perturbation_kernel(case):
    process, i = process_of(case), {k: f64(v) for k, v in case["inputs"].items()}
    B, (F, L, _) = process.B(i["t"]), process.kernel(i["t"])
    x0, v0 = i["x0"], i["v0"] if knows_velocity(process) else torch.zeros_like(i["x0"])
    sigma = process.covariance(i["t"], var_v=0.0 if knows_velocity(process) else None)
    likelihood = process_of(case, weighting="likelihood")
    return {
        "B": B,
        "mean_x": torch.outer(F.xx, x0) + torch.outer(F.xv, v0),
        "mean_v": torch.outer(F.vx, x0) + torch.outer(F.vv, v0),
        "Sxx": sigma.xx,
        "Sxv": sigma.xv,
        "Svv": sigma.vv,
        "Lxx": L.xx,
        "Lvx": L.vx,
        "Lvv": L.vv,
        "ell": process.ell(i["t"]),
        "lambda_ml": likelihood.weight(i["t"], process.kernel(i["t"])) / process.ell(i["t"]) ** 2,
    }


def covariance_general_init(case):
    i = case["inputs"]
    sigma = process_of(case).covariance(f64(i["t"]), i["var0x"], i["var0v"])
    return {"Sxx": sigma.xx, "Sxv": sigma.xv, "Svv": sigma.vv}


def perturb(case):
    process, i = process_of(case), {k: f64(v) for k, v in case["inputs"].items()}
    v0 = i["v0"] if knows_velocity(process) else None
    state = process.perturb(i["x0"], i["t"], State(i["eps_x"], i["eps_v"]), v0)
    target = -process.ell(i["t"])[:, None] * i["eps_v"]
    return {"x": state.x, "v": state.v, "target_v_score": target}


def forward_sde(case):
    drift, spread = forward_drift(
        process_of(case), state_of(case["inputs"]), f64(case["inputs"]["t"])
    )
    outputs = {"drift_x": drift.x, "drift_v": drift.v, "diff_v": spread}
    return outputs | {"diff_x": torch.zeros_like(spread)}


def reverse_drift(case):
    process, i = process_of(case), case["inputs"]
    state, t, score = state_of(i), f64(i["forward_t"]), f64(i["v_score"])
    ode = i["probability_flow"]
    drift = process.reverse_drift(lambda state, t: score, state, t, ode=ode)
    _, spread = forward_drift(process, state, t)
    return {"drift_x": drift.x, "drift_v": drift.v, "diff_v": 0 * spread if ode else spread}


def sscs_half_step_A(case):
    i = case["inputs"]
    process, state = process_of(case), state_of(i)
    start, end = f64(1 - i["tau"]), f64(1 - i["tau"] - i["length"])

    def half(noise):
        return cld.half_step(process, state, start, end, noise, num_stab=i["num_stab"])

    mean = half(State(torch.zeros_like(state.x), torch.zeros_like(state.x)))
    after = half(State(f64(i["eps_x"]), f64(i["eps_v"])))
    b = process.B(start) - process.B(end)
    sigma = process.noise_covariance(b, sign=-1)
    return {
        "b_elapsed": b,
        "Sxx": sigma.xx + i["num_stab"],
        "Sxv": sigma.xv,
        "Svv": sigma.vv + i["num_stab"],
        "mean_x": mean.x,
        "mean_v": mean.v,
        "x": after.x,
        "v": after.v,
    }


def sscs_score_step_S(case):
    i = case["inputs"]
    score, t = linear_score(i), f64(1 - i["tau"])
    state = cld.score_step(process_of(case), score, state_of(i), t, f64(i["dt"]))
    return {"x": state.x, "v": state.v}


def sampler_run(case, released=None):
    """`released`: whether the second half step of SSCS repeats the first half of the interval, as
    in the authors' code; their cases that depend on it are marked as not strict."""
    i, process = case["inputs"], process_of(case)
    released = not case.get("strict", True) if released is None else released
    eps_x, eps_v = f64(i["noise_in_call_order"]).chunk(2, dim=-1)  # (calls, batch, d) each
    # the released code's last call of nfe is its denoising step; without it, it takes a step more
    times = cld.time_grid(i["nfe"] + (not i["denoise"]), i["striding"], i["eps"])
    score, start = linear_score(i), state_of(i)
    if i["method"] == "em":
        states = cld.euler_maruyama(process, score, start, times, lambda n: eps_v[n])
    else:
        assert i["method"] == "sscs"
        noise = lambda n: (eps_x, eps_v)[n % 2][n // 2]
        states = cld.sscs(process, score, start, times, noise, released=released)
    *_, last, end = states
    if not i["denoise"]:
        return {"x": last.x, "v": last.v}
    # the released denoising step also moves v, for which it calls the network once more
    t = times[-1].expand(len(last.x))
    drift = process.reverse_drift(score, last, t)
    return {"x": end.x, "v": last.v + times[-1] * drift.v}


def score_parameterisation(case):
    i = case["inputs"]
    process, out = process_of(case, mixed_score=i["mixed_score"]), f64(i["net_output"])
    return {"v_score": process.score(lambda u, t, label: out)(state_of(i), f64(i["t"]))}


def loss(case):
    i = case["inputs"]
    choices = {name: i[name] for name in ("mixed_score", "loss_eps", "weighting")}
    process = process_of(case, **choices)
    x0, out = f64(i["x0"]), f64(i["net_output"])
    *start, pair = map(f64, i["noise_in_call_order"])  # DSM draws v_0 first
    noise = torch.stack([*pair.chunk(2, dim=1), *start], dim=1)
    u = (f64(i["t"]) - process.loss_eps) / (1 - process.loss_eps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "uniform", lambda *args, **kwargs: u)
        patch.setattr(rng, "normal", lambda *args, **kwargs: noise)
        return {"per_sample": process.loss(lambda u, t, label: out, x0, rng.generator(0, "loss"))}


def time_grid(case):
    i = case["inputs"]
    return {"tau": 1 - cld.time_grid(i["n_steps"] + 1, i["striding"], i["eps"])}


def vpsde_kernel(case):
    p, t = case["params"], f64(case["inputs"]["t"])
    kernel = VPSDE(beta0=p["beta0"], beta1=p["beta1"]).kernel
    mean = torch.outer(kernel.alpha(t), f64(case["inputs"]["x0"]))
    return {"mean": mean, "var": kernel.std(t) ** 2}


def prior_logp(case):
    logp = process_of(case).prior_log_density(state_of(case["inputs"]))
    return {"logp_x": logp.x, "logp_v": logp.v}


def nll_bound_and_bpd(case):
    i = case["inputs"]
    process, d = Langevin(M=i["M"], gamma=i["gamma"]), i["d"]
    bound = cld.position_bound(process, -f64(i["joint_nll"]), d)
    # 257: the released code squeezes 256 levels into bins of width 2 / 256
    return {"nll_x_bound": -bound, "bpd": metrics.bits(bound, d, levels=257)}


KINDS = {
    "perturbation_kernel": perturbation_kernel,
    "covariance_general_init": covariance_general_init,
    "perturb": perturb,
    "forward_sde": forward_sde,
    "reverse_drift": reverse_drift,
    "sscs_half_step_A": sscs_half_step_A,
    "sscs_score_step_S": sscs_score_step_S,
    "sampler_run": sampler_run,
    "score_parameterisation": score_parameterisation,
    "loss": loss,
    "time_grid": time_grid,
    "vpsde_kernel": vpsde_kernel,
    "prior_logp": prior_logp,
    "nll_bound_and_bpd": nll_bound_and_bpd,
}

# What replaces a default tolerance where the official closed forms lose digits: kind of number,
# key in the file, value if the file has none.
COVARIANCE = dict.fromkeys(["Sxx", "Sxv", "Svv"], ("atol", "cov_atol", 5e-15))
CHOLESKY = dict.fromkeys(["Lxx", "Lvx", "Lvv", "ell"], ("rtol", "cholesky_small_t_rtol", 1e-5))
HALF_STEP = dict.fromkeys(["x", "v"], ("atol", "sscs_half_step_state_atol", 1e-8))


def tolerances(case, name, loses_digits):
    default = TOLERANCES.get("default", {"rtol": 1e-9, "atol": 1e-11})
    chosen = {which: case.get(which, default[which]) for which in ("rtol", "atol")}
    is_half_step = case["kind"] == "sscs_half_step_A"
    table = COVARIANCE | (HALF_STEP if is_half_step else CHOLESKY)
    if loses_digits and name in table:
        which, key, fallback = table[name]
        chosen[which] = TOLERANCES.get(key, fallback)
    return chosen


def compare(case, name, actual, expected):
    expected = f64(expected)
    actual = actual.double().expand_as(expected)
    t = 0.0 if case["kind"] == "sscs_half_step_A" else case["inputs"].get("t", 1.0)
    small = f64(t) <= TOLERANCES.get("small_t_threshold", 0.01)
    for rows, loses_digits in ((small, True), (~small, False)):
        limits = tolerances(case, name, loses_digits)
        torch.testing.assert_close(actual[rows], expected[rows], **limits)


def test_the_file_holds_cases():
    assert GOLDEN["cases"], f"{FOLDER / 'cld.json'} holds no cases"


def check(case):
    assert case["kind"] in KINDS, f"unknown kind {case['kind']!r}; known: {', '.join(KINDS)}"
    outputs = KINDS[case["kind"]](case)
    assert outputs.keys() == case["outputs"].keys()
    for name, expected in case["outputs"].items():
        compare(case, name, outputs[name], expected)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_golden(case):
    check(case)


# The comparison itself, on the numbers of this folder.

CASES = json.loads((OWN / "cld.json").read_text())["cases"]


def ids_of(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["id"])


@ids_of([case for case in CASES if not case.get("strict", True)])
def test_only_the_released_half_steps_reproduce_a_case_that_is_not_strict(case):
    assert case["params"]["beta1"] != 0
    ours, theirs = sampler_run(case, released=False), sampler_run(case, released=True)
    for name, expected in case["outputs"].items():
        compare(case, name, theirs[name], expected)
        assert float((ours[name] - f64(expected)).abs().max()) > 0.1


@ids_of([case for case in CASES if case["kind"] == "sampler_run"])
def test_a_run_without_denoising_ends_before_the_last_drift(case):
    """It makes nfe steps, so on a case with one call less it is the same run before denoising."""
    shorter = copy.deepcopy(case)
    shorter["inputs"] |= {"denoise": False, "nfe": case["inputs"]["nfe"] - 1}
    last, end = sampler_run(shorter), sampler_run(case)
    process, eps = process_of(case), case["inputs"]["eps"]
    step = process.reverse_drift(
        linear_score(case["inputs"]), State(**last), f64(eps).expand(len(last["x"]))
    )
    torch.testing.assert_close(end["x"], last["x"] + eps * step.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end["v"], last["v"] + eps * step.v, rtol=1e-12, atol=1e-12)


def change_first(values, change):
    """The nested lists `values` with `change` applied to their first number."""
    if isinstance(values, list):
        return [change_first(values[0], change), *values[1:]]
    return change(values)


@ids_of(CASES)
def test_a_changed_number_is_noticed(case):
    for name, expected in case["outputs"].items():
        changed = copy.deepcopy(case)
        changed["outputs"][name] = change_first(expected, lambda value: 1.001 * value + 1e-7)
        with pytest.raises(AssertionError):
            check(changed)


def this_file_on(folder, cases, monkeypatch):
    """This file as it is when DIFFBOOK_GOLDEN names a folder with these cases."""
    return loaded_with(__file__, {"cases": cases}, folder, monkeypatch)


def test_another_folder_is_read_and_checked(tmp_path, monkeypatch):
    good, changed, unknown = copy.deepcopy(CASES[:3])
    changed["outputs"]["Sxx"][-1] += 1e-6
    unknown["kind"] = "shape"
    there = this_file_on(tmp_path, [good, changed, unknown], monkeypatch)
    there.test_the_file_holds_cases()
    good, changed, unknown = there.GOLDEN["cases"]
    there.test_golden(good)
    with pytest.raises(AssertionError, match="not close"):
        there.test_golden(changed)
    with pytest.raises(AssertionError, match="unknown kind 'shape'"):
        there.test_golden(unknown)


def test_a_file_without_cases_fails(tmp_path, monkeypatch):
    there = this_file_on(tmp_path, [], monkeypatch)
    with pytest.raises(AssertionError, match="holds no cases"):
        there.test_the_file_holds_cases()
