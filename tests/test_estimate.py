import miniature
import pytest
import torch
from torch import nn

from diffbook_lib import estimate, presets
from diffbook_lib.nets.unet import UNet


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    return miniature.write(tmp_path)


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


def test_estimate_adds_up(repository):
    tiny = estimate.estimate("cld", "tiny", gpu="A100", utilisation=0.5)
    net, _ = estimate.network(presets.resolve("cld", "tiny"))
    assert tiny.parameters == sum(p.numel() for p in net.parameters())
    assert all(p.is_meta for p in net.parameters())
    assert tiny.training_flops == 3 * tiny.forward_flops
    work = tiny.samples * tiny.training_flops
    assert tiny.gpu_hours == pytest.approx(work / (19.5e12 * 0.5) / 3600)
    halved = estimate.estimate("cld", "tiny", {"accumulate": 2})
    assert halved.activation_bytes == tiny.activation_bytes / 2


def test_a_checkpoint_has_the_estimated_size(repository):
    from diffbook_lib import checkpoint, jobs, records

    spec = presets.resolve("cld", "tiny", {"width": 64, "depth": 3})
    run = records.start_run("", spec)
    jobs.train_folder(run)
    actual = checkpoint.newest(run / "checkpoints").path.stat().st_size
    expected = estimate.estimate("cld", "tiny", {"width": 64, "depth": 3}).checkpoint_bytes
    assert actual == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("method", presets.SPECS)
def test_every_preset_can_be_estimated(method):
    for name in presets.names(method):
        cost = estimate.estimate(method, name)
        assert min(cost.parameters, cost.forward_flops, cost.state_bytes, cost.activation_bytes) > 0
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
