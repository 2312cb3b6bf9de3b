"""The noise embedding against its formula."""

import math

import pytest
import torch
from networks import same_numbers_every_time  # noqa: F401
from torch.nn import functional as F

from diffbook_lib.nets.embedding import NoiseEmbedding


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


def test_two_linear_layers_and_a_silu_between_follow():
    embedding, noise = NoiseEmbedding(width=8), torch.rand(3)
    inputs = []
    first, _, second = embedding.layers
    first.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    out = embedding(noise)
    h = F.silu(inputs[0] @ first.weight.T + first.bias)
    torch.testing.assert_close(out, h @ second.weight.T + second.bias)


def test_the_vector_of_a_label_is_added():
    embedding, noise = NoiseEmbedding(width=8, classes=2), torch.rand(4)
    bare = embedding(noise) - embedding.labels.weight[2]  # no label: the last vector
    found = embedding(noise, torch.tensor([1, 0, 1, 2]))
    torch.testing.assert_close(found - bare, embedding.labels.weight[[1, 0, 1, 2]])


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
