"""The checks have teeth: a formula changed on purpose makes a named check fail."""

from dataclasses import dataclass

import pytest
import test_cld_likelihood
import test_cld_objective
import test_cld_process
import test_cld_samplers
import test_cld_smoothness
import test_diffusion
import test_ema
import test_embedding
import test_exact
import test_guidance
import test_mlp
import test_ncsnpp
import test_nets
import test_posthoc
import test_probe
import test_rng
import test_samplers
import test_unet
import test_vpsde
import torch
from networks import same_numbers_every_time  # noqa: F401
from swaps import swap
from worlds import CRITICAL, HEAVY, UNDER

from diffbook_lib import cld, diffusion, edm2, ema, exact, metrics, nets, rng, samplers
from diffbook_lib.cld import CLD, Langevin, objective
from diffbook_lib.diffusion import VPSDE
from diffbook_lib.nets import mlp, ncsnpp, unet
from diffbook_lib.nets.embedding import NoiseEmbedding
from diffbook_lib.nets.mlp import MLP
from diffbook_lib.nets.unet import UNet
from diffbook_lib.rng import counter
from diffbook_lib.samplers import vpsde


@dataclass
class Mutation:
    function: object
    old: str
    new: str
    check: object
    arguments: tuple = ()

    def __str__(self):
        return f"{getattr(self.function, '__qualname__', '')}: {self.old} -> {self.new}"


def finite_data_in_chunks():
    with pytest.MonkeyPatch.context() as patch:
        test_exact.test_finite_data_in_chunks(7, 0.7, patch)


LINE, PUBLISHED = test_exact.mixture(1), test_rng.KNOWN[-1]
SCHEDULE = diffusion.DDPM(steps=50, beta_first=0.01, beta_last=0.2)

MUTATIONS = [
    Mutation(
        rng.image_noise,
        "[0, 0, 0, int(i)]",
        "[0, 0, int(i), 0]",
        test_rng.test_image_noise_is_philox_advanced_by_whole_images,
    ),
    Mutation(
        rng.start_noise,
        "start/{part}",
        "start",
        test_rng.test_two_models_start_an_image_from_the_same_noise,
    ),
    Mutation(
        rng.stratified,
        "order.to(dtype) + within.to(dtype)",
        "order.to(dtype)",
        test_rng.test_stratified_draws_are_uniform_and_in_random_order,
    ),
    Mutation(
        rng.stratified,
        "torch.randperm(size[0], generator=generator, device=device)",
        "torch.arange(size[0], device=device)",
        test_rng.test_stratified_draws_are_uniform_and_in_random_order,
    ),
    Mutation(
        counter.mixed,
        "bitwise_xor_(odd[1])",
        "bitwise_xor_(odd[0])",
        test_rng.test_philox_gives_the_published_words,
        PUBLISHED,
    ),
    Mutation(
        counter.schedule,
        "rounds * torch",
        "0 * rounds * torch",
        test_rng.test_philox_gives_the_published_words,
        PUBLISHED,
    ),
    Mutation(
        counter.normals,
        "add_(0.5)",
        "add_(2.0**30)",
        test_rng.test_step_noise_is_box_muller_of_philox,
        (5, 3),
    ),
    Mutation(
        counter.normals,
        "angle.sin_()",
        "angle.cos_()",
        test_rng.test_step_noise_is_standard_normal_and_independent,
    ),
    Mutation(
        rng.step_noise,
        "return last[1][place].clone()",
        "return last[1][0].clone()",
        test_rng.test_step_noise_is_standard_normal_and_independent,
    ),
    Mutation(
        rng.step_noise,
        "return last[1][place].clone()",
        "return last[1][place]",
        test_rng.test_changing_a_draw_in_place_changes_no_later_one,
    ),
    Mutation(
        rng.image_uniform,
        ">> 8",
        ">> 7",
        test_rng.test_uniform_numbers_of_images,
    ),
    Mutation(
        rng.image_order,
        "argsort(dim=1, stable=True)",
        "sort(dim=1, stable=True).values % n",
        test_rng.test_orders_of_images,
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
        exact.FiniteData.__init__,
        "part.square() / 2",
        "part.square()",
        test_exact.test_finite_data_by_brute_force,
        (0.7,),
    ),
    Mutation(
        exact.FiniteData.posterior_mean,
        "shrink * total",
        "total",
        finite_data_in_chunks,
    ),
    Mutation(
        exact.FiniteData.posterior_mean,
        "top = highest",
        "top = torch.zeros_like(top)",
        finite_data_in_chunks,
    ),
    Mutation(
        exact.FiniteData.log_density,
        "torch.logaddexp(",
        "torch.maximum(",
        finite_data_in_chunks,
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
        diffusion.EDM.draw,
        "x + expand",
        "expand",
        test_diffusion.test_edm_loss_by_hand,
    ),
    Mutation(
        diffusion.EDM.error,
        "draw.clean).square()",
        "draw.clean).abs()",
        test_diffusion.test_edm_loss_by_hand,
    ),
    Mutation(
        diffusion.UniformLogSNR.draw,
        "rng.stratified(n, source)",
        "rng.uniform((n,), source, dtype=torch.float64)",
        test_diffusion.test_stratified_levels_fill_each_part_of_the_range_once,
    ),
    Mutation(
        diffusion.UniformLogSNR.draw,
        "(high - low) * u",
        "(high - low) * u**2",
        test_diffusion.test_levels_follow_their_distribution,
        (diffusion.UniformLogSNR(),),
    ),
    Mutation(
        diffusion.DDPM.sigmas,
        "self.alpha_bar(device) - 1)",
        "self.alpha_bar(device))",
        test_diffusion.test_the_discrete_schedule_by_hand,
        (SCHEDULE,),
    ),
    Mutation(
        diffusion.DDPM.nearest,
        "(sigmas[1:] + sigmas[:-1]) / 2",
        "sigmas[:-1]",
        test_diffusion.test_the_nearest_step_of_the_discrete_schedule,
    ),
    Mutation(
        samplers.heun_churn,
        "raised**2 - start**2",
        "raised**2",
        test_samplers.test_heun_churn_keeps_the_variance_to_second_order,
    ),
    Mutation(
        samplers.heun_churn,
        "            start = raised\n",
        "",
        test_samplers.test_heun_churn_is_algorithm_2,
        ((1.0, 0.0, 9.0, 1.0), True),
    ),
    Mutation(
        samplers.heun_churn,
        "* S_noise *",
        "*",
        test_samplers.test_heun_churn_is_algorithm_2,
        ((100.0, 0.5, 3.0, 1.1), True),
    ),
    Mutation(
        samplers.probability_flow,
        ", options=within",
        "",
        test_samplers.test_the_odes_call_the_network_between_their_ends_only,
        (80.0, 0.002, torch.float64),
    ),
    Mutation(
        samplers.log_likelihood,
        ", options=within",
        "",
        test_samplers.test_the_odes_call_the_network_between_their_ends_only,
        (0.1, 5.0, torch.float32),
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
        diffusion.normal_log_density,
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
        "process, state, middle, end,",
        "process, state, start, middle,",
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
    # averages of weights
    Mutation(
        ema.Classic.beta,
        "(1 + step)",
        "step",
        test_ema.test_classic_is_the_explicit_weighted_average,
        (0.999,),
    ),
    Mutation(
        ema.Power.beta,
        "power_exponent(self.sigma_rel) + 1",
        "power_exponent(self.sigma_rel)",
        test_ema.test_power_is_the_explicit_weighted_average,
        (0.1,),
    ),
    Mutation(
        ema.power_width,
        "gamma + 3",
        "gamma + 2",
        test_ema.test_power_exponent_solves_the_equation,
        (0.1,),
    ),
    Mutation(
        ema.HalfLife.beta,
        "(step - 1)",
        "step",
        test_ema.test_the_ramp_is_that_of_the_released_code,
    ),
    Mutation(
        ema.HalfLife.beta,
        "batch / h",
        "1 / h",
        test_ema.test_what_is_a_half_life_old_weighs_half,
        (8,),
    ),
    Mutation(
        ema.EMA.update,
        "1 - beta",
        "beta",
        test_ema.test_classic_is_the_explicit_weighted_average,
        (0.9,),
    ),
    Mutation(
        ema.EMA.load_state_dict,
        "tensor.copy_(state[name])",
        "pass",
        test_ema.test_state_continues_exactly,
        ("classic-0.99",),
    ),
    Mutation(
        ema.EMA.update,
        "kept.copy_(b)",
        "pass",
        test_ema.test_buffers_are_copied,
    ),
    Mutation(
        ema.inner_products,
        "gamma_b, -gamma_a",
        "gamma_a, -gamma_b",
        test_posthoc.test_inner_products_are_integrals,
        ((10, 0.05), (20, 0.1)),
    ),
    Mutation(
        ema.inner_products,
        "gamma_a + gamma_b + 1",
        "gamma_a + gamma_b + 2",
        test_posthoc.test_inner_products_are_integrals,
        ((7, 0.1), (7, 0.25)),
    ),
    Mutation(
        ema.coefficients,
        "x = x / x.sum()",
        "pass",
        test_posthoc.test_coefficients_sum_to_one_and_those_of_least_squares_do_not,
    ),
    Mutation(
        ema.reconstruct,
        "alpha=share",
        "alpha=1 / len(used)",
        test_posthoc.test_the_error_against_a_tracked_average_is_that_of_the_table,
        (16,),
    ),
    Mutation(
        ema.reconstruct,
        "b.copy_(kept[name])",
        "pass",
        test_posthoc.test_weights_that_never_change_stay_and_buffers_are_the_last,
    ),
    Mutation(
        ema.power_response,
        "t <= at",
        "t < length",
        test_posthoc.test_the_sampled_profile_has_the_width_it_is_named_for,
        (0.1,),
    ),
    # guidance and the learning rate of EDM2
    Mutation(
        samplers.guided,
        "worse + weight * (main(x, sigma, label) - worse)",
        "worse + (weight - 1) * (main(x, sigma, label) - worse)",
        test_guidance.test_the_guided_score_is_a_product_of_powers,
        (1.4,),
    ),
    Mutation(
        samplers.unlabelled,
        "denoiser(x, sigma)",
        "denoiser(x, sigma, label)",
        test_guidance.test_the_guide_sees_the_label_unless_it_is_unlabelled,
    ),
    Mutation(
        edm2.InverseSqrt.at,
        "rate * (seen + self.epoch) / warmup",
        "rate * seen / warmup",
        test_guidance.test_by_epochs_the_rate_changes_between_epochs_alone,
    ),
    Mutation(
        edm2.InverseSqrt.at,
        "math.sqrt(max(seen / reference, 1))",
        "max(seen / reference, 1)",
        test_guidance.test_the_rate_rises_stays_and_falls,
    ),
    Mutation(
        edm2.InverseSqrt.__call__,
        "(step - 1)",
        "step",
        test_guidance.test_the_rate_rises_stays_and_falls,
    ),
    # linear probes
    Mutation(
        metrics.Reader.features,
        "x + sigma * rng",
        "x + 0 * rng",
        test_probe.test_features_are_the_means_of_what_the_block_gives,
    ),
    Mutation(
        metrics.Reader.features,
        "found[name] for name in self.blocks",
        "found[name] for name in reversed(self.blocks)",
        test_probe.test_blocks_of_every_network_can_be_read,
        ("edm2", 1),
    ),
    # networks: above all a nonlinearity that is not there
    Mutation(
        UNet.forward,
        "F.silu(self.embedding(noise, label))",
        "self.embedding(noise, label)",
        test_unet.test_the_whole_by_the_formula,
        (None,),
    ),
    Mutation(
        UNet.forward,
        "F.silu(self.norm(h))",
        "self.norm(h)",
        test_unet.test_the_whole_by_the_formula,
        (None,),
    ),
    Mutation(
        unet.ResidualBlock.forward,
        "F.silu(self.norm1(x))",
        "self.norm1(x)",
        test_unet.test_a_residual_block_by_the_formula,
    ),
    Mutation(
        unet.ResidualBlock.forward,
        "F.silu(h)",
        "h",
        test_unet.test_a_residual_block_by_the_formula,
    ),
    Mutation(
        unet.ResidualBlock.forward,
        "(1 + scale)",
        "scale",
        test_unet.test_a_residual_block_by_the_formula,
    ),
    Mutation(
        unet.Attention.forward,
        "q, k, v)",
        "k, q, v)",
        test_unet.test_attention_by_the_formula,
        (64, 2),
    ),
    Mutation(
        MLP.forward,
        "F.silu(self.embedding(noise, label))",
        "self.embedding(noise, label)",
        test_mlp.test_the_whole_by_the_formula,
        (0, None),
    ),
    Mutation(
        mlp.MLPBlock.__init__,
        "nn.SiLU(), nn.Linear(width, width), nn.SiLU()",
        "nn.Identity(), nn.Linear(width, width), nn.SiLU()",
        test_mlp.test_a_block_is_h_plus_f_of_the_modulated_h,
    ),
    Mutation(
        mlp.MLPBlock.__init__,
        "nn.SiLU(), last",
        "nn.Identity(), last",
        test_mlp.test_a_block_is_h_plus_f_of_the_modulated_h,
    ),
    Mutation(
        mlp.PlainMLP.__init__,
        "self.layers.extend([nn.Linear(width, width), nn.SiLU()])",
        "self.layers.extend([nn.Linear(width, width), nn.Identity()])",
        test_mlp.test_the_plain_mlp_by_the_formula,
        (3,),
    ),
    Mutation(
        NoiseEmbedding.__init__,
        "nn.SiLU()",
        "nn.Identity()",
        test_embedding.test_two_linear_layers_and_a_silu_between_follow,
    ),
    Mutation(
        NoiseEmbedding.forward,
        "self.classes, device",
        "0, device",
        test_unet.test_labels_and_the_missing_label,
    ),
    Mutation(
        ncsnpp.ResidualBlock.forward,
        "F.silu(self.norm2(h))",
        "self.norm2(h)",
        test_ncsnpp.test_a_residual_block_by_the_formula,
        (None,),
    ),
    Mutation(
        nets.make,
        "spec.blocks, spec.attention",
        "spec.blocks, ()",
        test_nets.test_a_network_by_name_is_that_made_by_hand,
        ("unet",),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_formula_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises(AssertionError):
        mutation.check(*mutation.arguments)
