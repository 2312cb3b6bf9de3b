"""What the tests of image networks share."""

import pytest
import torch

from diffbook_lib import rng


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    with rng.seeded(0, "tests"):
        yield


def awake(net):
    """With every parameter away from its starting value."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()
