"""The checks have teeth: a formula changed on purpose makes a named check fail.

The function's source is changed as text and its code swapped in place, so whoever imported it
earlier sees the change too.
"""

import inspect
import textwrap
from dataclasses import dataclass

import pytest
import test_cld
import test_diffusion
import test_exact
import test_rng
import test_samplers

from diffbook_lib import cld, diffusion, exact, rng, samplers
from diffbook_lib.cld import CLD


@dataclass
class Mutation:
    function: object
    old: str
    new: str
    check: object
    arguments: tuple = ()

    def __str__(self):
        return f"{self.function.__qualname__}: {self.old} -> {self.new}"


def swap(monkeypatch, mutation):
    """Replaces the function's code by that of its changed source."""
    function = mutation.function
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutation.old) == 1, f"{mutation.old!r} must stand once in the source"
    namespace = dict(function.__globals__)
    exec(source.replace(mutation.old, mutation.new), namespace)
    monkeypatch.setattr(function, "__code__", namespace[function.__name__].__code__)


UNDER, CRITICAL, HEAVY = test_cld.UNDER, test_cld.CRITICAL, test_cld.HEAVY
LINE = test_exact.mixture(1)

MUTATIONS = [
    Mutation(
        rng.image_noise,
        "[0, 0, 0, int(i)]",
        "[0, 0, int(i), 0]",
        test_rng.test_image_noise_is_philox_advanced_by_whole_images,
    ),
    Mutation(
        exact.World.score,
        "** 2",
        "",
        test_exact.test_score_is_the_gradient_of_the_log_density,
        (test_exact.FiniteData(test_exact.randn(4, 2)), 0.7),
    ),
    Mutation(
        exact.GaussianMixture.posterior_mean,
        "self._variances / variance",
        "self._variances",
        test_exact.test_posterior_mean_is_the_mean_of_the_posterior,
        (0.7, 0.1),
    ),
    Mutation(
        exact.FiniteData.posterior_mean,
        ".sum(dim=1) / 2",
        ".sum(dim=1)",
        test_exact.test_finite_data_by_brute_force,
        (0.7,),
    ),
    Mutation(
        exact.GaussianMixture.cdf,
        "** 2).sqrt()",
        "** 2)",
        test_exact.test_cdf_is_the_integral_of_the_density,
        (LINE, 0.7),
    ),
    Mutation(
        diffusion.VP._integral,
        "t**2 / 2",
        "t**2",
        test_diffusion.test_vp_against_quadrature_of_beta,
        (diffusion.VP(),),
    ),
    Mutation(
        diffusion.v_from_denoised,
        "noise - ",
        "noise + ",
        test_diffusion.test_conversions_follow_the_definitions_both_ways,
        ("v",),
    ),
    Mutation(
        diffusion.EDM.c_skip,
        "self.sigma_data**2 /",
        "sigma**2 /",
        test_diffusion.test_edm_skip_is_the_least_squares_estimate,
        (diffusion.EDM(), test_diffusion.LEVELS[1]),
    ),
    Mutation(
        diffusion.EDM.weight,
        "** 2",
        "",
        test_diffusion.test_edm_loss_of_a_silent_network_is_one_at_every_level,
        (diffusion.EDM(),),
    ),
    Mutation(
        samplers.heun,
        "(slope + slope_ahead) / 2",
        "slope",
        test_samplers.test_order_of_the_ode_samplers,
        (samplers.heun, 2, test_samplers.karras),
    ),
    Mutation(
        samplers.euler_maruyama,
        "math.sqrt(drop) * noise(i)",
        "drop * noise(i)",
        test_samplers.test_weak_order_of_the_random_samplers,
        (samplers.euler_maruyama,),
    ),
    Mutation(
        samplers.ancestral,
        "math.sqrt(1 - shrink)",
        "(1 - shrink)",
        test_samplers.test_ancestral_is_exact_for_one_data_point,
        (2,),
    ),
    Mutation(
        samplers.log_likelihood,
        "log_prior + divergence",
        "log_prior - divergence",
        test_samplers.test_log_likelihood_of_a_gaussian,
    ),
    Mutation(
        CLD.flow,
        "-sign * s, c + m * s",
        "-sign * s, c - m * s",
        test_cld.test_flow_is_the_matrix_exponential,
        (UNDER, 1.0),
    ),
    Mutation(
        CLD.noise_covariance,
        "small = B * rates < 1",
        "small = B * rates < 1e-9",
        test_cld.test_noise_covariance_in_high_precision,
        (CRITICAL, 1.0),
    ),
    Mutation(
        CLD.covariance,
        "Q.vv + var_x * F.vx**2 + var_v * F.vv**2 + self.eps_num",
        "Q.vv + var_x * F.vx**2 + var_v * F.vv**2",
        test_cld.test_eps_num_is_added_to_both_variances_only,
    ),
    Mutation(
        CLD.ell,
        "1 / cholesky(self.covariance(t)).vv",
        "cholesky(self.covariance(t)).vv",
        test_cld.test_ell,
        (1e-4,),
    ),
    Mutation(
        CLD.perturb,
        "expand(L.vx, x0) * noise.x",
        "expand(L.vx, x0) * noise.v",
        test_cld.test_perturb_has_the_moments_of_the_kernel,
        (CRITICAL,),
    ),
    Mutation(
        CLD.alpha,
        "covariance.vv, out) * state.v",
        "covariance.vv, out) * state.x",
        test_cld.test_mixed_score_adds_the_score_of_a_gaussian_velocity,
        (CRITICAL,),
    ),
    Mutation(
        CLD.reverse_drift,
        "2 * self.friction * score",
        "self.friction * score",
        test_cld.test_reverse_drift_takes_the_marginals_back,
        (CRITICAL, 0.7),
    ),
    Mutation(
        CLD.prior, "math.sqrt(self.M)", "self.M", test_cld.test_the_prior_is_stationary, (CRITICAL,)
    ),
    Mutation(
        cld.half_step,
        "process.flow(B, sign=-1)",
        "process.flow(B)",
        test_cld.test_half_step_solves_its_part_of_the_splitting,
        (CRITICAL,),
    ),
    Mutation(
        cld.score_step,
        "process.beta(t) * h",
        "process.beta(t - h) * h",
        test_cld.test_score_step,
        (HEAVY,),
    ),
    # the released code's second half step, at home in the first half of the interval
    Mutation(
        cld.sscs,
        "half_step(process, state, middle, end,",
        "half_step(process, state, start, middle,",
        test_cld.test_sscs_covers_the_whole_interval,
        (HEAVY,),
    ),
    Mutation(
        cld.time_grid, "1 - (1 - s) ** 2", "s**2", test_cld.test_time_grid, ("quadratic", 9, 1e-3)
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_formula_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation)
    with pytest.raises(AssertionError):
        mutation.check(*mutation.arguments)
