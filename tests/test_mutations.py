"""The checks have teeth: a formula changed on purpose makes a named check fail.

The function's source is changed as text and its code swapped in place, so whoever imported it
earlier sees the change too.
"""

import inspect
import textwrap
from dataclasses import dataclass

import pytest
import test_cld_likelihood
import test_cld_objective
import test_cld_process
import test_cld_samplers
import test_cld_smoothness
import test_diffusion
import test_exact
import test_rng
import test_samplers
import test_vpsde
from worlds import CRITICAL, HEAVY, UNDER

from diffbook_lib import cld, diffusion, exact, rng, samplers
from diffbook_lib.cld import CLD, Langevin, objective, process
from diffbook_lib.diffusion import VPSDE
from diffbook_lib.samplers import vpsde


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
        samplers.heun_step,
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
        "log_prior + changes",
        "log_prior - changes",
        test_samplers.test_log_likelihood_of_a_gaussian,
    ),
    Mutation(
        Langevin.flow,
        "-sign * s, c + slope",
        "-sign * s, c - slope",
        test_cld_process.test_flow_is_the_matrix_exponential,
        (UNDER, 1.0),
    ),
    Mutation(
        Langevin.noise_covariance,
        "small = B * rates < 1",
        "small = B * rates < 1e-9",
        test_cld_process.test_noise_covariance_in_high_precision,
        (CRITICAL, 1.0),
    ),
    Mutation(
        Langevin._started,
        "var_v * F.vv**2 + self.eps_num",
        "var_v * F.vv**2",
        test_cld_process.test_eps_num_is_added_to_both_variances_only,
    ),
    Mutation(
        Langevin.prior,
        "math.sqrt(self.M)",
        "self.M",
        test_cld_process.test_the_prior_is_stationary,
        (CRITICAL,),
    ),
    Mutation(
        process.normal_log_density,
        "/ variance + constant",
        "/ variance - constant",
        test_cld_process.test_log_density_of_the_prior,
        (CRITICAL,),
    ),
    Mutation(
        Langevin.reverse_drift,
        "else 2 * self.friction",
        "else self.friction",
        test_cld_process.test_reverse_drift_takes_the_marginals_back,
        (CRITICAL, 0.7, False),
    ),
    Mutation(
        Langevin.reverse_drift,
        "self.friction if ode else",
        "2 * self.friction if ode else",
        test_cld_process.test_reverse_drift_takes_the_marginals_back,
        (CRITICAL, 0.7, True),
    ),
    Mutation(
        CLD.ell,
        "1 / self.kernel(t).L.vv",
        "self.kernel(t).L.vv",
        test_cld_objective.test_ell,
        (1e-4,),
    ),
    Mutation(
        CLD.kernel,
        "self._started(Q, F, 0.0)",
        "self._started(Q, F, start)",
        test_cld_objective.test_the_target_of_dsm_varies_more,
        (CRITICAL,),
    ),
    Mutation(
        CLD.kernel,
        "S.vv + start * F.vv**2",
        "S.vv",
        test_cld_objective.test_mixed_score_adds_the_score_of_a_gaussian_velocity,
        (CRITICAL, "dsm"),
    ),
    Mutation(
        objective._sample,
        "expand(L.vx, x0) * noise.x",
        "expand(L.vx, x0) * noise.v",
        test_cld_objective.test_perturb_has_the_moments_of_the_kernel,
        (CRITICAL,),
    ),
    Mutation(
        objective._sample,
        "expand(F.xv, x0) * v0",
        "expand(F.vx, x0) * v0",
        test_cld_objective.test_perturb_from_a_known_velocity,
        (CRITICAL,),
    ),
    Mutation(
        CLD.alpha,
        "kernel.var_v, out) * state.v",
        "kernel.var_v, out) * state.x",
        test_cld_objective.test_mixed_score_adds_the_score_of_a_gaussian_velocity,
        (CRITICAL, "hsm"),
    ),
    Mutation(
        CLD.weight,
        "rate / kernel.L.vv**2",
        "rate / kernel.L.vv",
        test_cld_objective.test_weights_at_one_time,
        (CRITICAL, 0.1),
    ),
    Mutation(
        CLD.weight,
        "self.friction * self.beta(t)",
        "self.friction * self.beta0",
        test_cld_objective.test_weights_at_one_time,
        (HEAVY, 0.5),
    ),
    Mutation(
        cld.time_grid,
        "1 - (1 - s) ** 2",
        "s**2",
        test_cld_samplers.test_time_grid,
        ("quadratic", 9, 1e-3),
    ),
    Mutation(
        cld.half_step,
        "process.flow(B, sign=-1)",
        "process.flow(B)",
        test_cld_samplers.test_half_step_solves_its_part_of_the_splitting,
        (CRITICAL,),
    ),
    Mutation(
        cld.half_step,
        "Q.vv + num_stab",
        "Q.vv",
        test_cld_samplers.test_num_stab_is_added_to_both_variances_of_the_noise,
        (CRITICAL,),
    ),
    Mutation(
        cld.score_step,
        "process.beta(t) * h",
        "process.beta(t - h) * h",
        test_cld_samplers.test_score_step,
        (HEAVY,),
    ),
    # the released code's second half step, at home in the first half of the interval
    Mutation(
        cld.sscs,
        "else (middle, end)",
        "else (start, middle)",
        test_cld_samplers.test_sscs_covers_the_whole_interval,
        (HEAVY,),
    ),
    Mutation(
        cld.sscs,
        "(start, middle) if",
        "(middle, end) if",
        test_cld_samplers.test_released_sscs_uses_the_first_half_twice,
        (HEAVY,),
    ),
    Mutation(
        cld.sscs2,
        "half_step(process, state, middle, end,",
        "half_step(process, state, start, middle,",
        test_cld_samplers.test_sscs2_covers_the_whole_interval,
        (HEAVY,),
    ),
    # what makes order 2: the score at the middle time, and the velocity there
    Mutation(
        cld.midpoint_score_step,
        "filled(middle, state.x)",
        "filled(start, state.x)",
        test_cld_samplers.test_order_of_sscs2,
        (0.005, "quadratic", CRITICAL),
    ),
    Mutation(
        cld.midpoint_score_step,
        "b / 2, v, rest)",
        "b / 2, v, 0 * rest)",
        test_cld_samplers.test_order_of_sscs2,
        (1.0, "quadratic", CRITICAL),
    ),
    Mutation(
        cld.sscs2,
        "state, rest = midpoint",
        "state, _ = midpoint",
        test_cld_samplers.test_order_of_sscs2,
        (1.0, "quadratic", CRITICAL),
    ),
    Mutation(
        cld.midpoint_score_step,
        "b / 2, v, rest)",
        "b / 2, v, 0 * rest)",
        test_cld_samplers.test_order_of_the_midpoint_rule_on_a_nonlinear_score,
        (CRITICAL, 1.0),
    ),
    # any J keeps the order; the right one is exact for its Gaussian
    Mutation(
        cld.midpoint_score_step,
        "J = pull * (slope",
        "J = -pull * (slope",
        test_cld_samplers.test_midpoint_score_step_is_exact_for_its_gaussian,
        (HEAVY, 0.005),
    ),
    Mutation(
        cld.midpoint_score_step,
        "process.covariance(middle,",
        "process.covariance(start,",
        test_cld_samplers.test_midpoint_score_step_is_exact_for_its_gaussian,
        (HEAVY, 0.005),
    ),
    Mutation(
        cld.euler_maruyama,
        "process.beta(start) * h",
        "process.beta(end) * h",
        test_cld_samplers.test_euler_maruyama_by_hand,
    ),
    Mutation(
        cld.sample,
        "process.prior(start)",
        "start",
        test_cld_samplers.test_sample_starts_from_the_prior,
        (cld.sscs,),
    ),
    Mutation(
        cld.probability_flow,
        ", options=within",
        "",
        test_cld_samplers.test_probability_flow_stays_above_eps_and_counts_its_calls,
        (1e-3,),
    ),
    Mutation(
        cld.probability_flow,
        "State(*state), t, ode=True",
        "State(*state), t",
        test_cld_samplers.test_probability_flow_is_the_exact_transport,
        (CRITICAL, 0.2),
    ),
    Mutation(
        cld.log_density,
        "divergence(-back.v, v, probes)",
        "divergence(back.v, v, probes)",
        test_cld_likelihood.test_log_density_of_gaussian_data,
    ),
    Mutation(
        cld.log_density,
        "prior.x + prior.v",
        "prior.x",
        test_cld_likelihood.test_log_density_with_the_score_of_the_prior,
        (CRITICAL,),
    ),
    Mutation(
        cld.position_bound,
        "joint + dims",
        "joint - dims",
        test_cld_likelihood.test_position_bound_adds_the_entropy_of_the_velocity,
        (CRITICAL,),
    ),
    Mutation(
        cld.position_bound,
        "(1 + math.log",
        "(math.log",
        test_cld_likelihood.test_position_bound_adds_the_entropy_of_the_velocity,
        (CRITICAL,),
    ),
    Mutation(
        cld.log_likelihood_bound,
        "found.log_density - normal",
        "found.log_density + normal",
        test_cld_likelihood.test_the_bound_is_tight_for_gaussian_data,
    ),
    Mutation(
        VPSDE.alpha,
        "self.kernel.std(t), x) * x",
        "self.kernel.std(t), x) * out",
        test_vpsde.test_score_of_a_gaussian_world,
        (VPSDE(), True),
    ),
    Mutation(
        VPSDE.reverse_drift,
        "* (x / 2 +",
        "* (x +",
        test_vpsde.test_reverse_drift_takes_the_marginals_back,
        (VPSDE(), 0.7),
    ),
    Mutation(
        vpsde.euler_maruyama,
        "process.beta(start) * h).sqrt()",
        "process.beta(end) * h).sqrt()",
        test_vpsde.test_euler_maruyama_by_hand,
    ),
    Mutation(
        cld.jacobian_norm,
        ".square()",
        "",
        test_cld_smoothness.test_jacobian_norm_by_forward_over_rows,
    ),
    Mutation(
        cld.xi,
        "+ u[:, data.dim :]",
        "- u[:, data.dim :]",
        test_cld_smoothness.test_xi_is_zero_for_data_like_the_prior,
        (0.2,),
    ),
    Mutation(
        cld.xi_vp,
        "+ alpha * x",
        "+ x",
        test_cld_smoothness.test_xi_vp_on_its_own_draws_by_autograd,
        (0.2,),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_formula_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation)
    with pytest.raises(AssertionError):
        mutation.check(*mutation.arguments)
