"""Dual training: the loss, the multipliers' timetable and certificate, the run by its cells."""

import math
import shutil

import miniature
import pytest
import torch

from diffbook_lib import constrained, data, diffusion, exact, metrics, rng, runs, specs
from diffbook_lib.constrained import Ascent, Dual, Fixed, Lagrangian, NoiseLoss, Timetable
from diffbook_lib.runs import cells, checkpoint, folder, presets, training

EDM = diffusion.EDM(1.0)
PROBLEM = NoiseLoss(diffusion.UniformLogSNR(0.05, 20.0, stratified=True), EDM.denoiser)


class Points(torch.nn.Module):
    """A network for points whose answer depends on one weight."""

    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x, noise, label=None):
        return self.weight * x + noise[:, None]


def batch_of(*rows):
    """A batch with these many rows of each group, their values apart."""
    parts = {
        f"g{i}": (data.from_tensor(torch.randn(50, 2) + 3 * i, None, f"g{i}", ""), n)
        for i, n in enumerate(rows)
    }
    return data.Grouped(parts).batch(0, 0, sum(rows))


def lagrangian(multipliers=(0.5, 2.0), thresholds=(0.1, 0.2), **more):
    dual = Fixed([f"c{i}" for i in range(len(multipliers))], 0.0)
    dual.used.copy_(torch.tensor(multipliers))
    return Lagrangian(PROBLEM, dual, thresholds, **more)


# The loss.


def test_the_loss_is_the_weighted_sum_of_the_groups_losses():
    batch, net = batch_of(6, 4, 2), Points()
    loss, measures = lagrangian().loss(net, batch, rng.generator(0, "loss"))
    each = PROBLEM.error(net, PROBLEM.draw(batch.x, rng.generator(0, "loss")))
    means = [each[batch.group == g].mean() for g in range(3)]
    expected = means[0] + 0.5 * means[1] + 2.0 * means[2]
    torch.testing.assert_close(loss.mean(), expected)
    for i, b in enumerate((0.1, 0.2)):
        found = measures[f"violation/c{i}"].mean()
        torch.testing.assert_close(found, means[i + 1] - b)
        assert measures[f"lambda/c{i}"].eq((0.5, 2.0)[i]).all()
        assert not measures[f"violation/c{i}"].requires_grad


def test_its_gradient_is_that_of_the_loss_on_the_mixture_times_Z():
    """With rows in the proportions of the weights, 4 : 2 : 2 for 1 : 1/2 : 1/2."""
    batch, net = batch_of(4, 2, 2), Points()
    loss, _ = lagrangian((0.5, 0.5)).loss(net, batch, rng.generator(0, "loss"))
    (weighted,) = torch.autograd.grad(loss.mean(), net.weight)
    draw = PROBLEM.draw(batch.x, rng.generator(0, "loss"))
    (mixture,) = torch.autograd.grad(PROBLEM.error(net, draw).mean(), net.weight)
    torch.testing.assert_close(weighted, 2.0 * mixture)


def test_the_reference_sees_the_networks_own_draws_of_the_constraints_alone():
    batch, net, asked = batch_of(6, 4, 2), Points(), []

    def reference(draw, label):
        asked.append(draw)
        return PROBLEM.error(net, draw)

    _, measures = lagrangian(reference=reference, unit=7.0).loss(
        net, batch, rng.generator(0, "loss")
    )
    assert measures["violation/c0"].mean().item() == pytest.approx(-0.1, abs=1e-6)
    assert measures["violation/c1"].mean().item() == pytest.approx(-0.2, abs=1e-6)
    own = PROBLEM.draw(batch.x, rng.generator(0, "loss"))
    assert torch.equal(asked[0].noisy, own.noisy[batch.group > 0])


def test_violations_of_a_dataset_are_those_of_the_loss():
    batch, net = batch_of(0 + 1, 5), Points()
    found = lagrangian((0.0,), (0.1,), unit=3.0)
    rows = batch.group == 1
    each = found.violation(net, batch.x[rows], None, 0, rng.generator(0, "v"))
    error = PROBLEM.error(net, PROBLEM.draw(batch.x[rows], rng.generator(0, "v")))
    torch.testing.assert_close(each, 3 * error - 0.1)


def test_thresholds_and_constraints_must_be_as_many():
    with pytest.raises(ValueError, match=r"2 thresholds .* for the constraints c0"):
        lagrangian((0.5,), (0.1, 0.2))


def test_a_gap_of_the_noise_loss_is_a_divergence_in_nats():
    """Two normal distributions: KL by the textbook against the loss of the wrong denoiser."""
    q, r = (exact.Gaussian(torch.tensor([m, 0.0]), torch.eye(2) * 0.5) for m in (0.0, 0.6))
    low, high = 1e-3, 1e3
    problem = NoiseLoss(diffusion.UniformLogSNR(low, high, stratified=True), EDM.denoiser)
    x = q.sample(40_000, rng.generator(0, "x"))
    draw = problem.draw(x, rng.generator(0, "noise"))
    gap = problem.of(r, draw) - problem.of(q, draw)
    found = constrained.nats(2, low, high) * gap.mean()
    kl = 0.6**2 / (2 * 0.5)
    error = constrained.nats(2, low, high) * gap.std() / 200
    assert abs(found - kl) < 4 * error < 0.2 * kl
    with pytest.raises(ValueError, match="sigma_min is 2"):
        constrained.nats(2, 2.0, 1.0)


# The multipliers.


def disjoint(dual, pi, b, steps):
    """Drive the multipliers with the exact violations of classes that do not overlap, the best
    model being the mixture."""
    for step in range(1, steps + 1):
        lam = torch.cat([dual.used.double(), torch.zeros(len(pi) - len(b))])
        shares = (pi + lam) / (1 + lam.sum())
        violations = -shares.log()[: len(b)] - b
        pairs = zip(dual.names, violations, strict=True)
        dual.after_step(step, {f"violation/{name}": value for name, value in pairs})


def test_dual_training_finds_the_closed_form():
    pi, b = torch.tensor([0.04, 0.32, 0.32, 0.32]).double(), torch.tensor([math.log(4)])
    dual = Dual(["rare"], Ascent(0.05), Timetable(4000, 2, memory=0.5, finish=400))
    disjoint(dual, pi, b, 4000)
    found = dual.outcome()
    assert found.multipliers.item() == pytest.approx(0.28, rel=1e-4)
    assert dual.used.item() == pytest.approx(0.28, rel=1e-4)
    assert abs(found.violations.item()) < 1e-4 and not found.infeasible
    assert dual.multipliers.certified()
    assert (dual.multipliers.mean_violation() <= dual.multipliers.bound() + 1e-12).all()


def test_infeasible_thresholds_are_recognised_with_their_margin():
    """Two classes that must both have more than half of the mass: ln(2 exp(-0.5)) nats short."""
    pi, b = torch.tensor([0.1, 0.1, 0.8]).double(), torch.tensor([0.5, 0.5]).double()
    dual = Dual(["a", "b"], Ascent(0.5, cap=50.0), Timetable(2000))
    disjoint(dual, pi, b, 2000)
    found = dual.outcome()
    assert found.infeasible and dual.used.max() == 50
    assert found.margin == pytest.approx(math.log(2 * math.exp(-0.5)), abs=0.02)
    assert [m.name for m in metrics.multipliers(dual)] == ["Multiplier"] * 2 + [
        "Feasibility margin"
    ]
    assert dual.multipliers.certified(), "what the cap took is accounted for"
    relaxed = Dual(["a", "b"], Ascent(0.05, alpha=0.1, cap=50.0), Timetable(2000))
    disjoint(relaxed, pi, b, 2000)
    outcome = relaxed.outcome()
    assert not outcome.infeasible
    torch.testing.assert_close(outcome.multipliers, outcome.violations / 0.2, rtol=1e-3, atol=0)


def test_a_multiplier_at_its_cap_says_nothing_where_the_constraint_holds():
    dual = Dual(["c"], Ascent(0.1, cap=1.0), Timetable(8), start=1.0)
    feed(dual, [0.0] * 8)
    assert dual.outcome().multipliers.item() == 1 and not dual.outcome().infeasible


def feed(dual, violations):
    for step, value in enumerate(violations, 1):
        dual.after_step(step, {"violation/c": torch.tensor(float(value))})


def test_multipliers_move_when_the_timetable_says():
    times = Timetable(steps=12, primal_steps=3, dual_warmup=4, finish=2, memory=0.0, moments=12)
    assert [s for s in range(1, 13) if times.is_dual(s)] == [6, 9]
    assert (times.last, times.averaged_from, times.period) == (9, 6, 1)
    dual = Dual(["c"], Ascent(0.1), times)
    feed(dual, range(1, 13))
    lam = [0.0] * 5 + [0.6] * 3 + [1.5] * 3 + [1.5] * 1
    torch.testing.assert_close(dual.path[:, 0, 0], torch.tensor(lam))
    assert dual.path[:, 1, 0].tolist() == list(range(1, 13)), "the last batch alone"
    assert dual.multipliers.rate.item() == pytest.approx(0.2)


def test_the_finish_uses_the_average_and_leaves_the_ascent_alone():
    times = Timetable(steps=20, finish=4)
    dual = Dual(["c"], Ascent(1.0), times, start=1.0)
    feed(dual, [0.0] * 12 + [1.0, -1.0, 1.0, -1.0] + [5.0] * 4)
    assert dual.lam.item() == 1.0 and dual.used.item() == pytest.approx(1.5)
    assert dual.outcome().multipliers.item() == pytest.approx(1.5)


def test_a_running_mean_smooths_what_the_dual_step_sees():
    dual = Dual(["c"], Ascent(1.0), Timetable(4, memory=0.75))
    feed(dual, [4.0, 0.0, 0.0, 0.0])
    signal = [4.0, 3.0, 2.25, 1.6875]
    assert dual.path[:, 1, 0].tolist() == signal
    assert dual.used.item() == pytest.approx(sum(signal))


def test_the_controllers_gain_weighs_the_change():
    dual = Dual(["c"], Ascent(0.1, gain=2.0), Timetable(3))
    feed(dual, [1.0, 3.0, 2.0])
    assert dual.used.item() == pytest.approx(0.1 * (6 + 2 * (2 - 1)))
    assert dual.multipliers.certified()


def test_the_dual_step_may_follow_the_learning_rate():
    dual = Dual(["c"], Ascent(0.1), Timetable(3), scale=lambda step: step / 2)
    feed(dual, [1.0, 1.0, 1.0])
    assert dual.used.item() == pytest.approx(0.3)


def test_multipliers_that_something_else_changed_are_caught():
    dual = Dual(["c"], Ascent(0.1), Timetable(10, moments=10))
    feed(dual, [1.0])
    dual.lam.sub_(0.05)
    with pytest.raises(RuntimeError, match="that nothing disturbed"):
        dual.after_step(2, {"violation/c": torch.tensor(1.0)})


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"dual_warmup": 10}, "none is left for an ascent"),
        ({"finish": 10}, "none is left"),
        ({"primal_steps": 11}, "at every 11th step"),
        ({"primal_steps": 0}, "every 0th step"),
        ({"memory": 1.0}, "memory is 1.0"),
    ],
)
def test_a_timetable_without_a_dual_step_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Timetable(10, **wrong)


def test_what_was_not_trained_has_no_outcome():
    with pytest.raises(RuntimeError, match="train to the end"):
        Dual(["c"], Ascent(0.1), Timetable(10)).outcome()


# The run by its cells.

SMALL = {
    "dataset": "corners",
    "minority": [3],
    "per_class": 80,
    "per_minority": 16,
    "constraint_batch": 8,
    "network": "mlp",
    "width": 16,
    "depth": 1,
    "sigma_data": 1.0,
    "steps": 12,
    "dual_warmup": 2,
    "finish": 2,
    "checkpoint_every": 4,
    "samples": 30,
    "sample_batch": 20,
}
NATS = {"weighting": "nats", "thresholds": [math.log(4)], "memory": 0.5}
STARTED = {**SMALL, "minority": [], "classes": [3], "remembered": 24}


def spec_of(**changes):
    return presets.resolve("constrained", "smoke", {**SMALL, **changes})


def states(task):
    found = {f"net/{n}": t for n, t in task.net.state_dict().items()}
    for name, part in task.state.items():
        found |= {f"{name}/{n}": t for n, t in part.state_dict().items()}
    return found


def trained(spec, run=None, stop=0):
    task = cells.execute(spec, "build")["task"]
    for progress in training.events(task, spec, run):
        if stop and progress.step == stop and not progress.resumed:
            break
    return task


@pytest.mark.parametrize("kind", ["plain", "oversampling", "penalty", "dual"])
def test_every_way_of_training(kind):
    names = cells.execute(spec_of(training=kind, penalty=0.5), "build", "sample")
    (*_, last) = training.events(names["task"], names["spec"])
    assert last.step == 12 and math.isfinite(last.loss)
    assert ("lambda/class 3" in last.measures) == (kind in ("penalty", "dual"))
    if kind == "penalty":
        assert last.measures["lambda/class 3"] == 0.5
    counts = torch.bincount(names["batches"].batch(0, 0, 32).label, minlength=4)
    if kind == "dual":
        assert counts[3] >= 8 and names["dual"].used.item() > 0
    whole = names["batches"].to("cpu")
    if kind == "oversampling":
        assert [len(rows) for rows in data.class_rows(whole)] == [80] * 4
    if kind == "plain":
        assert [len(rows) for rows in data.class_rows(whole)] == [80, 80, 80, 16]


def test_the_exact_reference_measures_the_divergence_from_a_rare_mode():
    """A perfect model of the data misses the rare mode by -ln of its share."""
    spec = spec_of(**NATS, sigma_min=0.02, sigma_max=50.0, training="plain")
    names = cells.execute(spec, "build")
    world = exact.GaussianMixture.corners(weights=torch.tensor([80.0, 80, 80, 16]))
    problem = names["problem"]
    draw = problem.draw(names["examples"][0].batch(0, 0, 30_000).x, rng.generator(0, "d"))
    label = torch.full((30_000,), 3)
    gap = problem.of(world, draw) - names["reference"](draw, label)
    found, error = names["unit"] * gap.mean(), names["unit"] * gap.std() / 30_000**0.5
    assert abs(found.item() + math.log(16 / 256)) < 4 * error < 0.3


@pytest.mark.parametrize("changes", [{}, NATS])
def test_a_stopped_run_continues_to_the_same_multipliers(changes, tmp_path):
    spec = spec_of(**changes)
    whole = states(trained(spec))
    run = folder.open_run(tmp_path / "run", spec)
    for stop in (4, 8, 0):
        task = trained(spec, run, stop)
    folder.unlock(run)
    found = states(task)
    assert found.keys() == whole.keys() and found["dual/lam"].item() > 0
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert len(checkpoint.newest(run / "checkpoints").tensors) > len(whole)


def test_micro_batches_agree_to_rounding():
    one, four = (states(trained(spec_of(**NATS, accumulate=n))) for n in (1, 4))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=2e-3, atol=2e-4)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The run notebook and its presets alone, as other processes find them."""
    shipped = presets.root() / "nbs"
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    (tmp_path / "nbs" / "presets").mkdir(parents=True)
    shutil.copy(shipped / "constrained.ipynb", tmp_path / "nbs")
    shutil.copytree(
        shipped / "presets" / "constrained", tmp_path / "nbs" / "presets" / "constrained"
    )
    yield tmp_path
    for held in list(folder._locks):
        folder.unlock(held)


def test_two_processes_agree_to_rounding(checkout):
    spec = spec_of(**NATS)
    run = folder.open_run(checkout / "run", spec)
    folder.unlock(run)
    miniature.finish(checkout, *miniature.start_two(checkout, "train", run))
    tensors = checkpoint.newest(run / "checkpoints").tensors
    for name, value in states(trained(spec)).items():
        found = tensors[name if name.startswith("net/") else f"state/{name}"]
        if not name.startswith("net/"):  # the network is left with its average
            torch.testing.assert_close(found, value, rtol=2e-3, atol=2e-4)


# Networks of other runs.


@pytest.fixture
def before(checkout):
    """A finished run that learned three modes, and the folder's name."""
    spec = presets.resolve(
        "constrained",
        "smoke",
        {**SMALL, "minority": [], "classes": [0, 1, 2], "training": "plain"},
    )
    run = folder.open_run(checkout / "runs" / "before", spec)
    (member,) = runs.members(spec, run)
    member.progress = training.train(run, spec, member.task)
    runs.sample(member)
    return "runs/before"


def finetuned(before, **changes):
    changes = {**STARTED, "pretrained": before, "dual_warmup": 0, **NATS, **changes}
    return presets.resolve("constrained", "smoke", changes)


def test_fine_tuning_starts_where_it_was_and_remembers_its_samples(before, checkout):
    spec = finetuned(before)
    names = cells.execute(spec, "build")
    trained_before = runs.trained(checkout / before).state_dict()
    for name, value in names["net"].state_dict().items():
        assert torch.equal(value, trained_before[name])
    samples = runs.drawn(checkout / before).x
    known = names["batches"].batch(0, 0, 32)
    rows = known.x[known.group == 1]
    assert all((samples[:24] == row).all(dim=1).any() for row in rows)
    *_, last = training.events(names["task"], spec)
    assert last.step == 12
    frozen = names["task"].state["known"].net.state_dict()
    assert all(torch.equal(frozen[name], trained_before[name]) for name in frozen)


def test_at_the_start_nothing_is_forgotten(before):
    """The gap to the frozen network is zero, so the violation is minus the threshold."""
    spec = finetuned(before)
    names = cells.execute(spec, "build")
    found = metrics.violation(names["lagrangian"], names["net"], names["examples"][0], "known")
    assert found.value == pytest.approx(-math.log(4), abs=1e-5)


def test_a_fine_tuning_is_continued_without_the_other_run(before, checkout):
    spec = finetuned(before)
    whole = states(trained(spec))
    run = folder.open_run(checkout / "run", spec)
    trained(spec, run, stop=4)
    shutil.rmtree(checkout / before)
    found = states(trained(spec, run))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert found["known/examples"].abs().sum() > 0


def test_without_the_other_run_nothing_is_started(checkout):
    spec = finetuned("runs/nowhere")
    run = folder.open_run(checkout / "run", spec)
    with pytest.raises(ValueError, match=r"runs/nowhere, which is no run folder.*run that first"):
        trained(spec, run)
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    "changes, words",
    [({"width": 24}, "not built as this run's"), ({"remembered": 31}, "ask for fewer")],
)
def test_another_run_that_does_not_fit_is_refused(before, changes, words):
    with pytest.raises(ValueError, match=words):
        cells.execute(finetuned(before, **changes), "build")


def test_a_conditional_network_is_a_reference(checkout):
    spec = spec_of(training="plain", conditional=True)
    run = folder.open_run(checkout / "runs" / "reference", spec)
    (member,) = runs.members(spec, run)
    member.progress = training.train(run, spec, member.task)
    x, _ = member.names["draw"]([3, 7], "ddim", 5)
    assert x.shape == (2, 2)
    names = cells.execute(spec_of(**NATS, reference="runs/reference"), "build")
    draw = names["problem"].draw(torch.randn(6, 2), rng.generator(0, "d"))
    ones, threes = (names["reference"](draw, torch.full((6,), c)) for c in (1, 3))
    known = runs.trained(run)
    expected = names["problem"].error(known, draw, torch.full((6,), 3))
    torch.testing.assert_close(threes, expected)
    assert not torch.equal(ones, threes)


# The specification.


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"minority": [], "training": "dual"}, "needs a constraint"),
        ({"minority": [], "training": "penalty"}, "needs a constraint"),
        ({"pretrained": "x"}, "set one of them"),
        ({"minority": [3, 3]}, "names a class twice"),
        ({"thresholds": [0.1, 0.2]}, "2 thresholds for the constraints class 3"),
        ({"conditional": True}, "conditional = True is for"),
        ({"constraint_batch": 32}, "of which the constraints take 32"),
        ({"sigma_min": 30.0}, "sigma_min is 30.0"),
        ({**NATS, "schedule_of_noise": "ddpm"}, "uniform in the log-SNR"),
        ({**NATS, "dataset": "digits", "network": "unet"}, "set reference"),
        ({**NATS, "thresholds": [0.0]}, "feasibility margin is 0"),
        ({**NATS, "minority": [2, 3], "thresholds": [0.5]}, r"feasibility margin is 0\.193"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(specs.SpecError, match=words):
        spec_of(**changes)


def test_a_relaxed_constraint_is_always_feasible():
    assert spec_of(**{**NATS, "thresholds": [0.0]}, alpha=0.1).alpha == 0.1


def test_calls_of_the_samplers_are_counted():
    spec = spec_of(sampler="ddim", sampling_steps=4, table={"sampler": ["heun"]})
    names = cells.execute(spec, "build", "sample")
    calls = [names["draw"]([0], at["sampler"], at["sampling_steps"])[1] for at in spec.cells()]
    assert calls == [4, 7] and spec.calls() == 11


def test_ddpms_levels_and_noise_prediction():
    spec = spec_of(predicts="noise", schedule_of_noise="ddpm", sampling_steps=5)
    names = cells.execute(spec, "build", "sample")
    (*_, last) = training.events(names["task"], spec)
    assert math.isfinite(last.loss)
    levels = names["levels"].sigmas()
    assert levels[-1].item() == pytest.approx(157.4, abs=0.1)
    x, nfe = names["draw"]([0, 1], "ddim", 5)
    assert x.isfinite().all() and nfe == 5
