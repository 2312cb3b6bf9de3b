"""The noise embedding against its formula."""

import math

import pytest
import torch

from diffbook_lib import rng
from diffbook_lib.nets.embedding import NoiseEmbedding


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    with rng.seeded(0, "tests"):
        yield


@pytest.mark.parametrize("log", [False, True])
def test_features_are_fourier_features_and_the_level(log):
    embedding = NoiseEmbedding(width=8, features=5, log=log)
    seen = []
    embedding.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    noise = torch.tensor([0.01, 0.5, 3.0])
    assert embedding(noise).shape == (3, 8)
    for row, value in zip(seen[0], noise.tolist(), strict=True):
        level = math.log(value) / 4 if log else value
        waves = [f(level * w) for f in (math.cos, math.sin) for w in embedding.frequencies.tolist()]
        torch.testing.assert_close(row, torch.tensor([*waves, level]))


def test_frequencies_are_saved_but_not_trained():
    embedding = NoiseEmbedding(width=8)
    assert "frequencies" in embedding.state_dict()
    assert "frequencies" not in dict(embedding.named_parameters())
    assert 1 < embedding.frequencies.std() / math.pi < 4  # about 2 pi


def test_log_levels_a_factor_apart_are_equally_far_apart():
    embedding = NoiseEmbedding(width=8, log=True)
    seen = []
    embedding.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]))
    distances = (seen[0][1:] - seen[0][:-1])[:, -1]
    torch.testing.assert_close(distances, torch.full((5,), math.log(10) / 4))
