"""The entries of `golden/edm2.json` about averages, schedules and samplers.

Each handler takes an entry and returns what the library computes in the place of its numbers,
by the names these have there.
"""

from functools import partial

import pytest
import torch
from torch import nn

from diffbook_lib import edm2, ema, samplers

MILLION = 1_000_000
SIGMA_RANGE = (0.002, 80.0)
TRACKED = (0.05, 0.1)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


class Scalar(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.w = nn.Parameter(f64(value))


# Profiles


def sigma_rel_to_gamma(entry):
    return {"exp": f64([ema.power_exponent(sigma_rel) for sigma_rel in entry["std"]])}


def gamma_to_sigma_rel(entry):
    return {"std": f64([ema.power_width(gamma) for gamma in entry["exp"]])}


def power_beta(entry):
    """A step is t_delta long, so that it ends at step number t / t_delta."""

    def beta(sigma_rel, t, delta):
        return ema.Power(sigma_rel).beta(t / delta, delta)

    one, delta = entry["batch_case"], entry["t_delta"]
    return {
        "beta": f64([[beta(s, t, delta) for t in entry["t_next"]] for s in entry["std"]]),
        "batch_case": {"beta": f64(beta(one["std"], one["t_next"], one["t_delta"]))},
    }


def power_response(entry):
    found = [ema.power_response(c["std"], c["ofs"], c["len"]) for c in entry["cases"]]
    return {"cases": [{"resp": response} for response in found]}


def power_correlation(entry):
    def value(case):
        ends = [f64([case[name]]) for name in ("a_ofs", "a_std", "b_ofs", "b_std")]
        return ema.inner_products(*ends)[0, 0]

    return {"cases": [{"value": value(case)} for case in entry["cases"]]}


# Post-hoc averages


def coefficients(case):
    """A snapshot later than the target, which we refuse, has no weight in the file either."""
    times, sigmas, at = f64(case["in_ofs"]), f64(case["in_std"]), case["out_ofs"]
    known = times <= at
    found = torch.zeros(len(times), len(case["out_std"]), dtype=torch.float64)
    for column, sigma_rel in enumerate(case["out_std"]):
        solution = ema.coefficients(times[known], sigmas[known], at, sigma_rel)
        found[known, column] = solution.coefficients
    if not known.all():
        with pytest.raises(ValueError, match="says nothing of an average at"):
            ema.coefficients(times, sigmas, at, case["out_std"][0])
    return found


def posthoc_coefficients(entry):
    return {"cases": [{"coef": coefficients(case)} for case in entry["cases"]]}


def lucidrains_solve_weights(entry):
    known = f64(entry["in_ofs"]), f64(entry["in_std"])
    found = ema.least_squares(*known, entry["out_ofs"], entry["out_std"])
    return {"weights": found, "sum": found.sum()}


def ema_track(entry):
    """The course of one weight: tracked averages, and others made of their snapshots."""
    assert entry["T"] == len(entry["theta"])
    wanted, net, kept = entry["target_std"], Scalar(), []
    averages = {s: ema.EMA(net, ema.Power(s), 1) for s in (*TRACKED, *wanted)}
    for step, value in enumerate(entry["theta"], 1):
        net.w.data.fill_(value)
        for average in averages.values():
            average.update(net)
        if step % entry["every"] == 0:
            states = [averages[s].state_dict() for s in TRACKED]
            copies = [{name: t.clone() for name, t in state.items()} for state in states]
            kept += [
                ema.Snapshot(step, s, partial(dict, copy))
                for s, copy in zip(TRACKED, copies, strict=True)
            ]
    found = []
    for sigma_rel in wanted:
        ema.reconstruct(net, kept, sigma_rel)
        found.append(net.w.item())
    return {
        "snapshots": torch.stack([snapshot.read()["w"] for snapshot in kept]).reshape(-1, 2),
        "direct": torch.stack([averages[s].parameters["w"] for s in wanted]),
        "reconstructed": f64(found),
    }


def traditional_ema(entry):
    """Its ramp counts the images after the step: in ours, those before the next one."""
    config, average, found = entry["config"], entry["init"], []
    images, ramp = config["halflife_Mimg"] * MILLION, config["rampup_ratio"]
    profile = ema.profile(f"halflife-{images}-ramp-{ramp}")
    for step, value in enumerate(entry["theta"][: len(entry["out"])], 1):
        beta = profile.beta(step + 1, config["batch_size"])
        average = beta * average + (1 - beta) * value
        found.append(average)
    return {"out": f64(found)}


# Sampling


def linear(mu, sd):
    """The denoiser of N(mu, sd^2)."""

    def denoiser(x, sigma, label=None):
        variance = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (x * sd**2 + mu * variance) / (sd**2 + variance)

    return denoiser


def edm_sampler(entry):
    config, low = entry["config"], SIGMA_RANGE[0]
    high, main = float(config["sigma_max"]), linear(**config["denoiser"])
    start = high * f64(entry["noise"])

    def heun(denoiser, steps):
        sigmas = samplers.karras_sigmas(int(steps), low, high)
        return samplers.run(samplers.heun(denoiser, start, sigmas))

    own = config["guided"]
    guided = samplers.guided(main, linear(own["mu"], own["sd"]), own["guidance"])
    churn, draws = config["churn"], iter(f64(entry["churn_noise"]))
    sigmas = samplers.karras_sigmas(churn["num_steps"], low, high)
    limits = churn["S_churn"], churn["S_min"], churn["S_max"], churn["S_noise"]
    states = samplers.heun_churn(main, start, sigmas, lambda i: next(draws), None, *limits)
    return {
        "out": {steps: heun(main, steps) for steps in entry["out"]},
        "guided": heun(guided, own["num_steps"]),
        "churn": samplers.run(states),
    }


def levels_asked(sigmas):
    """The noise levels at which Heun's method calls the denoiser."""
    asked = []

    def denoiser(x, sigma, label=None):
        asked.append(sigma.item())
        return 0 * x

    samplers.run(samplers.heun(denoiser, f64([[1.0]]), sigmas))
    return f64(asked)


def heun_schedule(entry):
    own = entry["custom"]
    ends = own["sigma_min"], own["sigma_max"], own["rho"]
    return {
        "levels": levels_asked(samplers.karras_sigmas(entry["N"], *SIGMA_RANGE)),
        "custom": {"levels": levels_asked(samplers.karras_sigmas(own["num_steps"], *ends))},
    }


def seed_schedule(entry):
    sigmas = samplers.karras_sigmas(entry["steps"], *SIGMA_RANGE)
    rising = sigmas.flip(0)
    return {
        "times": sigmas,
        "sigma_for_t": {t: rising[int(t)] for t in entry["sigma_for_t"]},
    }


# Learning rates


def lr_schedule(entry):
    def rates(ref_lr=0.01, ref_batches=70000, rampup_Mimg=10):
        rate = edm2.InverseSqrt(ref_lr, 2048, int(rampup_Mimg * MILLION), ref_batches)
        return f64([rate.at(seen) for seen in entry["cur_nimg"]])

    return {"cases": [{"lr": rates(**case["kw"])} for case in entry["cases"]]}


def lr_schedule_seed(entry):
    """With epochs of one image, and one step an epoch."""

    def rates(case):
        rate = edm2.InverseSqrt(case["lrate"], 1, case["warm"], case["tref"], epoch=1)
        return f64([rate(epoch + 1) for epoch in entry["epoch"]])

    cases = {name: case for name, case in entry.items() if "lrate" in case}
    return {name: {"lr": rates(case)} for name, case in cases.items()}


HANDLERS = {
    "sigma_rel_to_gamma": sigma_rel_to_gamma,
    "gamma_to_sigma_rel": gamma_to_sigma_rel,
    "power_beta": power_beta,
    "power_response": power_response,
    "power_correlation": power_correlation,
    "posthoc_coefficients": posthoc_coefficients,
    "lucidrains_solve_weights": lucidrains_solve_weights,
    "ema_track": ema_track,
    "traditional_ema": traditional_ema,
    "edm_sampler": edm_sampler,
    "heun_schedule": heun_schedule,
    "seed_schedule": seed_schedule,
    "lr_schedule": lr_schedule,
    "lr_schedule_seed": lr_schedule_seed,
}
