"""The tests of constrained diffusion have teeth: a formula changed on purpose makes one fail."""

import pytest
import test_constrained_ascent as ascent_tests
import test_constrained_exact as exact_tests
import test_golden_constrained as golden_tests
import torch
from swaps import swap
from test_mutations import Mutation

from diffbook_lib import constrained
from diffbook_lib.constrained import Ascent, KLProblem, Multipliers, NoiseProblem, Problem, solver

BY_NAME = {case["id"]: case for case in golden_tests.CASES}


def golden(name):
    return golden_tests.check, (BY_NAME[name],)


def alone(test, *arguments):
    """A test that hypothesis draws examples for, on one."""
    return vars(test)["hypothesis"].inner_test, arguments


STEP = (ascent_tests.test_a_step_adds_the_violation_and_never_falls_below_zero, ())
CAP = (ascent_tests.test_a_cap_holds_and_the_rest_is_remembered_as_withheld, ())
CONTROLLER = (ascent_tests.test_a_controller_adds_its_gain_times_the_change, ())
BOUND = alone(ascent_tests.test_no_mean_violation_exceeds_its_bound, 3, 0.5, 0.1, 0.3, 4.0, 0.5)
LETTERS, NOISE = "letters", "noise"
DERIVATIVES = exact_tests.test_gradient_and_curvature_are_those_of_the_dual
MUTATIONS = [
    Mutation(function, old, new, *check)
    for function, old, new, check in [
        (Ascent.step, "clamp(0.0, self.cap)", "clamp(max=self.cap)", STEP),
        (Ascent.step, "clamp(0.0, self.cap)", "clamp(min=0.0)", CAP),
        (Ascent.step, "(wanted - self.cap).clamp(min=0)", "0.0", CAP),
        (Ascent.step, "self.gain * change", "change", CONTROLLER),
        (Ascent.step, ".clamp(min=0) - nudge", ".clamp(min=0)", BOUND),
        (Ascent.step, "rate=at.rate + eta", "rate=at.rate + 1", BOUND),
        (
            *(Ascent.step, "2 * self.alpha", "self.alpha"),
            golden("trace-resilient"),
        ),
        (Multipliers.bound, "+ self.withheld", "", BOUND),
        (
            *(Multipliers.certified, "room >= -ROUNDING", "room >= -1e9"),
            (
                ascent_tests.test_what_disturbs_the_ascent_loses_the_certificate,
                ("lam",),
            ),
        ),
        (
            constrained.running_mean,
            "/ n",
            "/ 2",
            (ascent_tests.test_the_running_mean_is_the_mean, ()),
        ),
        (constrained.mixture_weights, "weights / weights.sum()", "weights", golden("ident")),
        (Problem.violation, "- self.b", "+ self.b", golden("disc-1c-active")),
        (Problem.gradient, "2 * self.alpha", "self.alpha", golden("resil-2c")),
        (Problem.dual, "- self.alpha * lam.square().sum()", "", golden("resil-2c")),
        (Problem.curvature, "/ (1 + lam.sum())", "", (DERIVATIVES, (LETTERS, 0.0))),
        (Problem.curvature, "2 * self.alpha", "self.alpha", (DERIVATIVES, (LETTERS, 0.2))),
        (
            *(Problem.safe_step, "2 / float", "3 / float"),
            (exact_tests.test_steps_beyond_the_safe_one_oscillate, ()),
        ),
        (KLProblem.lagrangian, "loss[1:] - self.b", "loss[1:]", golden("ident")),
        (KLProblem._covariance, ".exp() - 1", ".exp()", (DERIVATIVES, (LETTERS, 0.0))),
        (constrained.kl, "log_q - log_p", "log_p - log_q", golden("ident")),
        (constrained.entropy, "return -torch", "return torch", golden("ident")),
        (NoiseProblem.losses_of, "- 2 * (f", "- (f", golden("eps-two")),
        (NoiseProblem._covariance, "return 2 *", "return", (DERIVATIVES, (NOISE, 0.0))),
        (
            NoiseProblem._covariance,
            "log_mix[:, None] / 2",
            "log_mix[:, None]",
            (DERIVATIVES, (NOISE, 0.0)),
        ),
        (constrained.noise_gap, "gap = sigma *", "gap =", golden("kl-eps-integral")),
        (constrained.nats_levels, "weight[[0, -1]] /= 2", "weight *= 2", golden("kl-eps-integral")),
        (constrained.simple_levels, "1 / levels.steps", "1.0", golden("eps-minority")),
        (
            *(constrained.nats_a_step, "levels.steps / 2", "levels.steps"),
            (
                exact_tests.test_steps_of_a_discrete_schedule_are_worth_their_share_of_log_snr,
                (),
            ),
        ),
        (
            *(constrained.threshold, "irreducible + b / unit", "b / unit"),
            (exact_tests.test_equal_thresholds_on_losses_are_not_equal_divergences, ()),
        ),
        (
            *(constrained.mix, "w * world.weights", "world.weights"),
            (exact_tests.test_the_mixed_world_is_the_optimal_density, ()),
        ),
        (
            constrained.grid,
            "cell *=",
            "cell =",
            (exact_tests.test_densities_on_the_grid_sum_to_one, (2,)),
        ),
        (
            constrained.class_balance,
            "asked * rest - own",
            "asked - own",
            golden("mnist-4-5-7-mild"),
        ),
        (constrained.class_balance, "active[i] = False", "pass", golden("class-one-inactive")),
        (
            *(constrained.class_balance, "(asked / own).argsort()", "own.argsort()"),
            alone(
                exact_tests.test_the_closed_form_for_classes_is_the_solvers,
                *([1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]),
            ),
        ),
        (constrained.feasibility, "found.gap < tol", "found.gap < 1", golden("infeasible")),
        (solver._towards_centre, "log_w + violation", "log_w - violation", golden("feasible")),
        (
            *(solver._feasible, "return True", "return False"),
            golden("disc-1c-active"),
        ),
        (
            *(constrained.solve, "2 * problem.alpha * lam", "lam"),
            golden("resil-2c"),
        ),
        (
            solver._maximiser,
            "float(waiting.max()) <= ROUNDING",
            "True",
            alone(exact_tests.test_every_solvable_problem_is_solved, 8, 3, 1.0),
        ),
        (
            *(solver._maximiser, "RIDGE * torch.eye", "0 * torch.eye"),
            (exact_tests.test_a_constraint_that_the_data_satisfy_by_themselves_costs_nothing, ()),
        ),
        (solver.ascend, "problem.dual(at)", "problem.losses(at)[0]", golden("trace-1c")),
        (
            *(constrained.dual_frames, "height - thresholds", "height + thresholds"),
            (exact_tests.test_frames_are_the_dual_at_each_threshold, (2,)),
        ),
    ]
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_formula_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises((AssertionError, ArithmeticError, ValueError, torch.linalg.LinAlgError)):
        mutation.check(*mutation.arguments)
