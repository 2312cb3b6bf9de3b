"""Random numbers depend on their key alone: not on the worker, the batch or earlier draws."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffbook_lib import rng
from diffbook_lib.rng import Share, generator


def draw_normal(shape, source):
    return rng.normal(shape, source, torch.float64)


def draw_integers(shape, source):
    return rng.integers(7, shape, source)


DRAWS = [draw_normal, rng.uniform, draw_integers]


@pytest.mark.parametrize("seed, purpose, step", [(0, "loss", 0), (3, "data", 5), (2**40, "é", 9)])
def test_the_seed_is_the_hash_of_the_key_plus_the_step(seed, purpose, step):
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    expected = (int.from_bytes(digest[:8], "little") + step) % 2**63
    assert generator(seed, purpose, step).initial_seed() == expected


def test_every_part_of_the_key_matters():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 2**31)]
    draws = [rng.normal((4,), generator(*key)) for key in keys]
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)
    assert torch.equal(draws[0], rng.normal((4,), generator(*keys[0])))


def test_neighbouring_steps_are_independent():
    rows = torch.stack([rng.normal((500,), generator(0, "loss", i)) for i in range(200)])
    neighbours = (rows[1:] * rows[:-1]).mean()
    assert abs(neighbours) < 4 / (199 * 500) ** 0.5


@pytest.mark.parametrize("seed, step, named", [(-1, 0, "seed is -1"), (0, -7, "step is -7")])
def test_negative_keys_are_refused(seed, step, named):
    with pytest.raises(ValueError, match=named):
        generator(seed, "loss", step)


@settings(deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    draw=st.sampled_from(DRAWS),
    seed=st.integers(0, 1000),
)
def test_shares_of_any_split_make_up_the_whole(cuts, draw, seed):
    """Also in the second draw from the same generator."""
    total = 12

    def two_draws(source, rows):
        return draw((rows, 3), source), draw((rows,), source)

    whole = two_draws(generator(seed, "loss"), total)
    shares = [
        two_draws(Share(generator(seed, "loss"), start, stop, total), stop - start)
        for start, stop in pairwise([0, *sorted(cuts), total])
    ]
    for drawn, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(drawn, torch.cat(parts))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_share_gives_only_its_own_rows(draw):
    with pytest.raises(ValueError, match=r"asked for 5 rows.* holds 4"):
        draw((5, 2), Share(generator(0, "loss"), 0, 4, 8))


def test_the_distributions():
    n = 20_000
    normal = draw_normal((n,), generator(0, "normal"))
    uniform = rng.uniform((n,), generator(0, "uniform"), torch.float64)
    integers = rng.integers(7, (n,), generator(0, "integers"))
    assert stats.kstest(normal, "norm").pvalue > 0.001
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
    assert integers.dtype == torch.int64
    assert stats.chisquare(torch.bincount(integers, minlength=7)).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_as_asked(dtype):
    assert rng.normal((2,), generator(0, "a"), dtype).dtype == dtype
    assert rng.uniform((2,), generator(0, "a"), dtype).dtype == dtype


def test_permutations():
    order = rng.permutation(50, 0, "order", 3)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, rng.permutation(50, 0, "order", 3))
    assert not torch.equal(order, rng.permutation(50, 0, "order", 4))


@settings(deadline=None, derandomize=True)
@given(indices=st.lists(st.integers(0, 2**40), max_size=5))
def test_noise_of_an_image_is_its_own(indices):
    noise = rng.image_noise(0, "samples", indices, (2, 3))
    assert noise.shape == (len(indices), 2, 3) and noise.dtype == torch.float32
    for row, index in zip(noise, indices, strict=True):
        assert torch.equal(row, rng.image_noise(0, "samples", [index], (2, 3))[0])


def test_image_noise_is_philox_advanced_by_whole_images():
    key = int.from_bytes(hashlib.sha256(b"4/samples").digest()[:8], "little")
    stream = np.random.Philox(key=key).advance(5 * 2**192)
    expected = np.random.Generator(stream).standard_normal((3, 3), dtype=np.float32)
    assert np.array_equal(rng.image_noise(4, "samples", [5], (3, 3))[0], expected)


def test_image_noise_is_standard_normal_and_independent():
    noise = rng.image_noise(0, "samples", range(200), (100,)).double()
    assert stats.kstest(noise.flatten(), "norm").pvalue > 0.001
    assert abs((noise[1:] * noise[:-1]).mean()) < 4 / (199 * 100) ** 0.5
    assert not torch.equal(noise, rng.image_noise(1, "samples", range(200), (100,)).double())


def test_seeded_keys_the_global_generator_and_puts_it_back():
    def weights(seed):
        with rng.seeded(seed, "init"):
            return torch.nn.Linear(3, 3).weight

    before = torch.get_rng_state()
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(KeyError), rng.seeded(0, "init"):
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rows", [(3, 2, 4), (-1, 2, 4), (2, 6, 4)])
def test_a_share_lies_within_its_batch(rows):
    with pytest.raises(ValueError, match=f"rows {rows[0]}:{rows[1]}"):
        rng.Share(torch.Generator(), *rows)


def test_seeded_refuses_a_negative_step():
    with pytest.raises(ValueError, match="step is -1"), rng.seeded(0, "x", -1):
        pass
