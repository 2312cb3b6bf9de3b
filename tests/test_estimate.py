"""What a run will cost: counted by hand for small networks, all members and averages included."""

import pytest
import torch
from torch import nn

from diffbook_lib.errors import Refused
from diffbook_lib.nets.unet import UNet
from diffbook_lib.runs import cells, checkpoint, estimate, presets, training
from diffbook_lib.runs.estimate import member_cost

COUNTS = 64 * 16 + 16 + 16 * 1088 + 1088  # weights of the miniature's two layers
COUNTS_FLOPS = 2 * (64 * 16 + 16 * 1088)
CLASSIFIER_FLOPS = 2 * (9 * 32 * 64 + 9 * 32 * 32 * 64 + 9 * 32 * 64 * 16 + 1024 * 32 + 32 * 10)


def test_against_a_network_counted_by_hand():
    """Two linear layers: FLOPs 2 in out; kept for the backward pass: both layers' inputs."""
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to("meta")
    example = (torch.zeros(1, 3, device="meta"),)
    assert estimate.forward_flops(net, example) == 2 * (3 * 5 + 5 * 2)
    assert estimate.activation_bytes(net, example) == 4 * (3 + 5)


def test_meta_device_agrees_with_the_real_network():
    def build():
        return UNet(1, 1, size=8), (torch.zeros(1, 1, 8, 8), torch.ones(1))

    real = build()
    with torch.device("meta"):
        meta = build()
    assert estimate.forward_flops(*meta) == estimate.forward_flops(*real)
    ratio = estimate.activation_bytes(*meta) / estimate.activation_bytes(*real)
    assert 0.9 < ratio < 1.1  # attention has another kernel on each device


def test_every_figure_of_a_small_run_by_hand(repository):
    """Weights, gradients and two moments, and each average; sampling and grading of 10 images."""
    cost = member_cost(presets.resolve("counts", "tiny"))
    assert cost == {
        "parameters": COUNTS,
        "forward_flops": COUNTS_FLOPS,
        "samples": 72,
        "training_flops": 3 * 72 * COUNTS_FLOPS,
        "sampling_flops": 10 * COUNTS_FLOPS,
        "grading_flops": 10 * CLASSIFIER_FLOPS,
        "state_bytes": 4 * 5 * COUNTS,
        "activation_bytes": 12 * 4 * (64 + 16),
        "checkpoint_bytes": 4 * 4 * COUNTS,
        "snapshot_bytes": 0,
    }


def test_averages_take_memory_and_disk(repository):
    one = member_cost(presets.resolve("counts", "tiny"))
    three = {"ema": ["power-0.1", "classic-0.9", "classic-0.99"]}
    more = member_cost(presets.resolve("counts", "tiny", three))
    for name in ("state_bytes", "checkpoint_bytes"):
        assert more[name] - one[name] == 2 * 4 * COUNTS
    assert {n for n in one if one[n] != more[n]} == {"state_bytes", "checkpoint_bytes"}


@pytest.mark.parametrize(("precision", "size"), [("fp16", 2), ("fp32", 4)])
def test_snapshots_take_disk(repository, precision, size):
    """One of each average after steps 4 and 6 of 6, or 2, 4 and 6, or 6 alone."""
    changes = {"snapshot_precision": precision, "ema": ["power-0.1", "classic-0.9"]}
    for every, count in ((4, 2), (2, 3), (7, 1), (0, 0)):
        spec = presets.resolve("counts", "tiny", {**changes, "snapshot_every": every})
        assert member_cost(spec)["snapshot_bytes"] == size * count * 2 * COUNTS


def test_every_way_of_sampling_is_counted(repository):
    """With its own number of calls; grading as often as there are ways."""
    plain = member_cost(presets.resolve("ladder", "tiny"))
    assert plain["sampling_flops"] == 10 * 5 * plain["forward_flops"]
    table = member_cost(presets.resolve("ladder", "tiny", {"table": {"nfe": [3, 5, 7]}}))
    assert table["sampling_flops"] == 10 * (5 + 3 + 7) * plain["forward_flops"]
    assert plain["grading_flops"] == 0  # points are graded without a network


def test_micro_batches_keep_less_at_once(repository):
    whole = member_cost(presets.resolve("counts", "tiny"))
    parts = member_cost(presets.resolve("counts", "tiny", {"accumulate": 3}))
    assert parts["activation_bytes"] == whole["activation_bytes"] / 3


def test_weights_that_are_not_trained_have_no_moments(repository):
    notebook = repository / "nbs" / "counts.ipynb"
    text = notebook.read_text()
    assert text.count("example = ") == 1
    notebook.write_text(
        text.replace("example = ", "net[1].weight.requires_grad_(False); example = ")
    )
    cost = member_cost(presets.resolve("counts", "tiny"))
    trained = COUNTS - 64 * 16
    assert cost["parameters"] == trained
    assert cost["state_bytes"] == 4 * (2 * COUNTS + 3 * trained)
    assert cost["checkpoint_bytes"] == 4 * (2 * COUNTS + 2 * trained)


def test_all_members_are_priced(repository):
    whole = estimate.estimate("ladder", "sweep", gpu="A100", utilisation=0.5)
    spec = presets.resolve("ladder", "sweep")
    costs = [member_cost(spec.member(at)) for at in spec.members()]
    assert whole.members == 6 and len({cost["parameters"] for cost in costs}) == 2
    for name in ("samples", "training_flops", "sampling_flops", "grading_flops", "snapshot_bytes"):
        assert getattr(whole, name) == sum(cost[name] for cost in costs), name
    for name in ("parameters", "forward_flops", "state_bytes", "checkpoint_bytes"):
        assert getattr(whole, name) == max(cost[name] for cost in costs), name
    assert whole.samples == 6 * 40 * 12 and whole.snapshot_bytes > 0
    work = whole.training_flops + whole.sampling_flops + whole.grading_flops
    assert whole.gpu_hours == pytest.approx(work / (19.5e12 * 0.5) / 3600)
    assert "ladder sweep, 6 members" in str(whole)


def test_nothing_holds_numbers_or_is_written(repository):
    before = sorted(repository.rglob("*"))
    net, _ = estimate.network(presets.resolve("counts", "tiny"))
    assert all(p.is_meta for p in net.parameters())
    estimate.estimate("counts", "tiny")
    assert sorted(repository.rglob("*")) == before


def test_what_cannot_be_priced_is_refused(repository):
    with pytest.raises(Refused, match=r"unknown GPU 'H10'.*did you mean 'H100'"):
        estimate.estimate("counts", "tiny", gpu="H10")
    with pytest.raises(Refused, match=r"utilisation is 1\.5"):
        estimate.estimate("counts", "tiny", utilisation=1.5)


def test_a_checkpoint_and_snapshots_have_the_estimated_size(repository):
    """With two averages, beyond the names and the digest in their headers."""
    changes = {"width": 64, "depth": 3, "snapshot_every": 3, "steps": 6}
    spec = presets.resolve("ladder", "tiny", changes)
    assert len(spec.ema) == 2
    run = repository / "run"
    list(training.events(cells.execute(spec, "build")["task"], spec, run))
    expected = estimate.estimate("ladder", "tiny", changes)
    actual = checkpoint.newest_file(run / "checkpoints").stat().st_size
    assert actual == pytest.approx(expected.checkpoint_bytes, rel=0.03)
    snapshots = [path.stat().st_size for path in (run / "snapshots").iterdir()]
    assert len(snapshots) == 4
    assert sum(snapshots) == pytest.approx(expected.snapshot_bytes, rel=0.06)


SHIPPED = sorted(presets.root().glob("nbs/presets/*/*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_preset_can_be_estimated(file):
    cost = estimate.estimate(file.parent.name, file.stem)
    assert min(cost.parameters, cost.forward_flops, cost.state_bytes, cost.activation_bytes) > 0
    assert cost.sampling_flops > 0
    assert f"{cost.parameters:,} trainable" in str(cost)


@pytest.mark.parametrize(
    "preset, parameters",
    {
        "cifar10": 107_593_859,
        "celebahq256": 65_466_371,
        "celebahq256-post": 103_073_795,
        "toy-published": 50_562,
    }.items(),
)
def test_the_published_networks_of_cld_have_their_number_of_weights(preset, parameters):
    assert estimate.estimate("cld", preset).parameters == parameters
