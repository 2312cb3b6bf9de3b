"""The run of EDM2 by its cells: configurations, labels, guides, averages, and what it measures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffbook_lib import data, diffusion, edm2, ema, metrics, rng, runs, specs
from diffbook_lib.data import ArrayDataset
from diffbook_lib.edm2 import magnitudes
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import cells, checkpoint, folder, grading, presets, restoring, training
from diffbook_lib.runs.sampling import Samples
from diffbook_lib.runs.sweeps import Member

FEW = {"steps": 4, "snapshot_every": 2, "checkpoint_every": 4, "samples": 6, "sample_batch": 4}


def spec_of(**changes):
    return presets.resolve("edm2", "smoke", {**FEW, "growth_points": 2, **changes})


def trained(run, **changes):
    """The member of a run trained for a few steps."""
    spec = spec_of(**changes)
    (member,) = runs.members(spec, folder.open_run(run, spec))
    member.progress = training.train(member.folder, spec, member.task)
    return member


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    made = trained(tmp_path_factory.mktemp("edm2") / "run", table={"average": ["power-0.15"]})
    yield made
    folder.unlock(made.folder)


@pytest.mark.parametrize("config", "CDEFG")
def test_every_configuration_trains(config):
    names = cells.execute(spec_of(config=config, lr_plain=1e-3), "build")
    (*_, last) = training.events(names["task"], names["spec"])
    assert last.step == 4 and 0 < last.measures["unweighted"] < 10
    assert last.lr == names["rate"](4)
    rows = [w.flatten(1).square().mean(1).sqrt() for w in magnitudes.weights(names["net"]).values()]
    projected = torch.cat(rows) if config in "EFG" else torch.ones(1)
    torch.testing.assert_close(projected, torch.ones_like(projected), rtol=0, atol=2e-4)


def test_the_official_network_takes_labels():
    spec = spec_of(config="G", variant="official", conditional=True, channels=8)
    names = cells.execute(spec, "build", "sample")
    list(training.events(names["task"], spec))
    names["net"].gain.data.fill_(1.0)
    names["net"].eval()
    one, nfe = names["draw"]([3], 0.0, 1.0, 3)
    other, _ = names["draw"]([13], 0.0, 1.0, 3)  # of the same class, from other noise
    assert nfe == 5 and one.shape == (1, 1, 8, 8) and not torch.equal(one, other)
    assert one.dtype == torch.uint8 and one.max() <= 16


def test_image_number_i_is_the_same_in_every_batch(member):
    draw = member.names["draw"]
    (together, nfe), (alone, _) = draw([4, 7, 9], 20.0, 1.0, 4), draw([7], 20.0, 1.0, 4)
    assert nfe == 7 and torch.equal(together[1:2], alone)


def test_the_learning_rate_may_change_with_the_epochs():
    spec = spec_of(by_epoch=True, warmup_images=6000, lr=0.1)
    rate = cells.execute(spec, "build")["rate"]
    assert rate.epoch == 1500 and rate(1) == pytest.approx(0.025)


@pytest.mark.parametrize("labelled", [True, False])
def test_another_run_guides(member, tmp_path, labelled):
    guide = str(member.folder)
    spec = spec_of(guide=guide, guidance=1.5, guide_average="power-0.2", guide_labelled=labelled)
    names = cells.execute(spec, "build", "sample")
    names["net"].eval()
    (guided, calls), (alone, one) = (names["draw"]([0, 1], 0.0, w, 4) for w in (1.5, 1.0))
    assert (calls, one) == (14, 7) and not torch.equal(guided, alone)


def test_a_guide_may_be_less_trained_than_its_run(member):
    nets = [runs.trained(member.folder, "power-0.1", at) for at in (0, 64, 128)]
    states = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])
    with pytest.raises(checkpoint.CheckpointError, match="no snapshot at 65"):
        runs.trained(member.folder, "power-0.1", 65)


def test_samples_of_an_average_that_was_not_tracked(member):
    first, second = runs.sample(member)
    assert (first.at["average"], second.at["average"]) == ("", "power-0.15")
    other = runs.trained(member.folder, "power-0.15")
    denoiser = member.names["edm"].denoiser
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    own = denoiser(member.task.net)(x, sigma)  # left with the first average
    torch.testing.assert_close(own, denoiser(runs.trained(member.folder))(x, sigma))
    assert not torch.equal(own, denoiser(other)(x, sigma))


def test_an_average_made_of_snapshots_is_near_the_tracked_one(tmp_path):
    """The last snapshot is that of the last step, whether or not the period divides them."""
    wanted = "power-0.13"
    averages = {"ema": ["power-0.05", "power-0.1", wanted], "steps": 22, "snapshot_every": 4}
    run = trained(tmp_path / "run", **averages, snapshot_precision="fp32").folder
    spec = folder.read_spec(run)
    times = sorted({snapshot.time for snapshot in checkpoint.snapshots(run)})
    assert times == [32 * step for step in (4, 8, 12, 16, 20, 22)]
    direct = runs.trained(run, wanted).state_dict()
    for path in (run / "snapshots").glob(f"*-{wanted}.safetensors"):
        path.unlink()
    net = runs.trained(run)
    ema.reconstruct(net, checkpoint.snapshots(run), 0.13)
    norms = [
        torch.cat([(state[n] - direct[n] * keep).flatten() for n in direct]).norm()
        for state, keep in ((net.state_dict(), 1), (direct, 0))
    ]
    assert 0 < norms[0] < 1e-3 * norms[1]
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint with the average classic"):
        restoring.restore(net, run, spec, "classic-0.5")
    (run / "snapshots" / f"{32 * 22:012d}-power-0.1.safetensors").unlink()
    (run / "snapshots" / f"{32 * 22:012d}-power-0.05.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="no snapshot at 704"):
        restoring.restore(net, run, spec, "power-0.12")
    folder.unlock(run)


# What is measured.


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, noise, label=None):
        return self.second(self.dropout(self.first(x)).relu())


def test_growth_is_measured_in_time_and_off_dropout():
    net, x = Layers(), torch.randn(64, 3)
    growth = edm2.Growth(net, (x, torch.zeros(64)), steps=6, every=3)
    assert list(growth.parameters()) == [] and net.training
    before = [net.first(x).square().mean(0).sqrt(), net.second.weight.square().mean(1).sqrt()]
    for step in range(1, 7):
        with torch.no_grad():
            net.first.weight.mul_(1.1)
            net.first.bias.mul_(1.1)
        growth.after_step(step, {})
    expected = before[0].square().mean().sqrt() * torch.tensor([1, 1.1**3, 1.1**6])
    torch.testing.assert_close(growth.activations[:, 0], expected)
    torch.testing.assert_close(growth.weights[:, 1], before[1].square().mean().sqrt().expand(3))
    growth_of_first = growth.weights[:, 0] / growth.weights[0, 0]
    torch.testing.assert_close(growth_of_first, torch.tensor([1, 1.1**3, 1.1**6]))


def test_growth_is_continued_exactly(tmp_path):
    spec = spec_of(checkpoint_every=2)
    whole = cells.execute(spec, "build")["task"]
    list(training.events(whole, spec))
    run = folder.open_run(tmp_path / "run", spec)
    for _ in range(2):
        task = cells.execute(spec, "build")["task"]
        for progress in training.events(task, spec, run):
            if progress.step == 2 and not progress.resumed:
                break
    folder.unlock(run)
    for name, values in whole.state["growth"].state_dict().items():
        assert torch.equal(task.state["growth"].state_dict()[name], values)


def test_the_denoising_error_is_that_of_the_textbook():
    """The ideal denoiser of one point: its error is zero; that of a wrong one is the distance."""
    edm = diffusion.EDM(0.5)
    images = ArrayDataset(torch.zeros(40, 1, 2, 2), levels=None)
    for error in (0.0, 0.3):
        wrong = lambda draw_x, noise, label=None, error=error: (
            (error - expand_skip(edm, draw_x, noise)) / expand_out(edm, draw_x, noise)
        )
        found = metrics.denoising_error(edm, wrong, images, sigma=2.0, draws=3)
        weight = edm.weight(torch.tensor(2.0)).item()
        assert found.value == pytest.approx(weight * error**2, rel=1e-5, abs=1e-9)
        assert found.samples == 120 and found.at == {"sigma": 2.0}
    zero = lambda x, noise, label=None: torch.zeros_like(x)
    spread = replace(images, examples=0.5 * torch.randn(40, 1, 2, 2))
    one = metrics.denoising_error(edm, zero, spread, draws=50)
    assert one.value == pytest.approx(1, abs=0.1)  # before training, at every level
    assert one == metrics.denoising_error(edm, zero, spread, draws=50)


def expand_skip(edm, scaled, noise):
    sigma = (4 * noise).exp()[:, None, None, None]
    return edm.c_skip(sigma) * scaled / edm.c_in(sigma)


def expand_out(edm, scaled, noise):
    return edm.c_out((4 * noise).exp()[:, None, None, None])


def test_several_figures_of_a_member_keep_their_coordinates():
    one = Member(spec_of(), Path(), {"seed": 3}, {})
    figures = [Measurement("a", 1.0, 5, at={"block": "x"}), Measurement("b", 2.0, 5)]
    several = grading.measure([one], lambda member: iter(figures))
    assert [found.at for found in several.results] == [{"seed": 3, "block": "x"}, {"seed": 3}]
    (single,) = grading.measure([one], lambda member: figures[1]).results
    assert single.at == {"seed": 3}


def test_only_the_runs_own_way_of_sampling_is_searched_for_copies(member):
    class Judge:
        grade = staticmethod(lambda x: [Measurement("grade", 1.0, len(x))])
        copies = staticmethod(lambda x: [Measurement("copies", 1.0, len(x))])

    drawn = [Samples(at, torch.zeros(2, 1), 3, 0.1) for at in member.spec.cells()]
    found = grading.judged(drawn, Judge, member.spec).results
    assert [m.name for m in found] == ["grade", "grade", "copies"]
    assert found[2].at["average"] == "" and found[2].details["nfe"] == 3


# The specification.


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"schedule": "cosine", "reference_steps": 0}, "'constant' or 'inverse-sqrt'"),
        ({"warmup_images": 0, "warmup_steps": 3}, "after warmup_images"),
        ({"schedule": "constant"}, "reference_steps is 20"),
        ({"reference_steps": 0}, "needs it"),
        ({"config": "E", "variant": "official"}, "no official network of configuration E"),
        ({"sigma_min": 90.0}, "sigma_min is 90.0"),
        ({"guidance": 2.0}, "guide names no run folder"),
        ({"table": {"guidance": [1.5]}}, "guide names no run folder"),
        ({"snapshot_every": 0}, "set snapshot_every"),
        ({"ema": ["classic-0.9"]}, "ema, now classic-0.9"),
        ({"lengths": [], "snapshot_every": 0, "average": "power-0.2", "table": {}}, "now 0"),
        ({"probe_sigmas": []}, "probe_sigmas is empty"),
        ({"average": "power"}, "average: 'power' is no average"),
        ({"lengths": [0.3]}, "must be less than 0.288"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(specs.SpecError, match=words):
        spec_of(**changes)


def test_c_has_a_learning_rate_of_its_own():
    rates = {c: spec_of(config=c, lr=0.1, lr_plain=1e-3).highest_lr for c in "CDEG"}
    assert rates == {"C": 1e-3, "D": 0.1, "E": 0.1, "G": 0.1}
    assert spec_of(config="C", lr=0.1).highest_lr == 0.1


def test_the_learning_rate_falls_from_e_on():
    late = {c: cells.execute(spec_of(config=c), "build")["rate"](2000) for c in "DE"}
    assert late == {"D": 1e-2, "E": pytest.approx(1e-3, rel=1e-3)}


def test_a_guides_calls_are_counted(tmp_path):
    table = {"guidance": [1.0, 2.0], "sampling_steps": [5, 9]}
    spec = spec_of(guide=str(tmp_path), sampling_steps=5, table=table)
    assert spec.calls() == 9 + 17 + 18 + 34


# Latents.


def test_latents_are_read_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "imagenet-latents"
    place.mkdir()
    with pytest.raises(data.MissingDataError, match=r"train\.npy not found.*0\.5 \(z - mean\)"):
        data.load("imagenet-latents")
    z = 0.5 * torch.randn(6, 4, 64, 64, generator=rng.generator(0, "latents"))
    np.save(place / "train.npy", z.half().numpy())
    np.save(place / "train-labels.npy", np.arange(6))
    found = data.load("imagenet-latents")
    assert found.shape == data.describe("imagenet-latents").shape == (4, 64, 64)
    batch = found.batch(0, 0, 6)
    assert batch.x.dtype == torch.float32 and sorted(batch.label.tolist()) == [*range(6)]
    torch.testing.assert_close(batch.x, z.half().float()[batch.label])
    np.save(place / "train.npy", 4 * z.half().numpy())
    with pytest.raises(data.ArchiveError, match=r"not 0\.5"):
        data.load("imagenet-latents")
    np.save(place / "train.npy", z[:, :3].numpy())
    with pytest.raises(data.ArchiveError, match="latents are"):
        data.load("imagenet-latents")


def test_latents_are_judged_by_their_values():
    z = 0.5 * torch.randn(30, 4, 8, 8)
    with pytest.warns(UserWarning, match="judged by pixels alone"):
        judge = metrics.Judge.of(ArrayDataset(z, levels=None, name="imagenet-latents"))
    assert judge.grade(z[:10], draws=2)[0].value >= 0
    assert metrics.grading_flops("imagenet-latents", (4, 64, 64), 10) == 0
