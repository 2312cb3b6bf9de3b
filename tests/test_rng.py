"""Random numbers depend on their key alone: not on the worker, the batch or earlier draws."""

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from waits import Waits

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


@settings(deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 1000))
def test_stratified_draws_put_one_number_in_each_stratum_whatever_the_split(cuts, seed):
    whole = rng.stratified(12, generator(seed, "loss"))
    assert whole.shape == (12,) and whole.dtype == torch.float64
    assert sorted((12 * whole).floor().tolist()) == list(range(12))
    shares = [
        rng.stratified(stop - start, Share(generator(seed, "loss"), start, stop, 12))
        for start, stop in pairwise([0, *sorted(cuts), 12])
    ]
    assert torch.equal(whole, torch.cat(shares))


def test_stratified_draws_are_uniform_and_in_random_order():
    draws = torch.stack([rng.stratified(8, generator(0, "loss", i)) for i in range(2000)])
    assert stats.kstest(draws[:, 3], "uniform").pvalue > 0.001
    assert stats.kstest((8 * draws).frac().flatten(), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1] + 1 / 7) < 0.1  # drawn without return


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


def test_two_models_start_an_image_from_the_same_noise():
    """The key depends on nothing but the seed, the image and the part of the state."""
    start = rng.start_noise(3, [5, 9], (2, 2))
    assert torch.equal(start[1], rng.start_noise(3, [9], (2, 2))[0])
    assert torch.equal(start, rng.image_noise(3, "start/x", [5, 9], (2, 2)))
    assert torch.equal(
        rng.start_noise(3, [5], (2, 2), "v"), rng.image_noise(3, "start/v", [5], (2, 2))
    )


# The counter-based generator of later steps.

KNOWN = [  # counter, key, words: Random123, kat_vectors
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (" ".join(["ffffffff"] * 4), "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def from_hex(text):
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    found = rng.philox(from_hex(counter), torch.cat(from_hex(key)))
    assert torch.equal(torch.stack(found), torch.stack(from_hex(words)))


def philox_by_hand(counter, key):
    """One counter in plain integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, c = second >> 32 ^ b ^ k0, first >> 32 ^ d ^ k1
        b, d = second & 0xFFFFFFFF, first & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


WORD = st.integers(0, 2**32 - 1)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_words_of_a_counter_broadcast(counter, key):
    a, b, c, d = counter
    rows = torch.tensor([[a], [(a + 1) % 2**32]])
    words = rng.philox((rows, b, torch.tensor([c, 7, 8]), d), torch.tensor(key))
    for i in range(2):
        for j, third in enumerate((c, 7, 8)):
            expected = philox_by_hand((int(rows[i, 0]), b, third, d), key)
            assert [int(word[i, j]) for word in words] == expected


def key_words(seed, purpose):
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    return key & 0xFFFFFFFF, key >> 32


@pytest.mark.parametrize("draw, image", [(0, 0), (5, 3), (2**32 - 1, 2**32 - 1)])
def test_step_noise_is_box_muller_of_philox(draw, image):
    """Block, draw, image and 0 are the counter's words: six numbers take two blocks."""
    found = rng.step_noise(4, "sample", [image], (2, 3))(draw).flatten().double()
    cosines, sines = [], []
    words = [philox_by_hand((block, draw, image, 0), key_words(4, "sample")) for block in (0, 1)]
    for first in (0, 2):
        for block in (0, 1):
            radius, angle = words[block][first : first + 2]
            radius = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
            cosines.append(radius * math.cos(2 * math.pi * angle / 2**32))
            sines.append(radius * math.sin(2 * math.pi * angle / 2**32))
    expected = torch.tensor([*cosines, *sines][:6], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@settings(deadline=None, derandomize=True)
@given(
    numbers=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    shape=st.sampled_from([(2,), (1, 8, 8), (3, 7, 5)]),
    draws=st.lists(st.integers(0, 100), min_size=1, max_size=5),
)
def test_step_noise_of_an_image_is_its_own(numbers, shape, draws):
    """In any batch, in any order of the draws."""
    noise = rng.step_noise(0, "sample", numbers, shape)
    for draw in draws:
        z = noise(draw)
        assert z.shape == (len(numbers), *shape) and z.dtype == torch.float32
        for row, number in zip(z, numbers, strict=True):
            assert torch.equal(row, rng.step_noise(0, "sample", [number], shape)(draw)[0])


def test_step_noise_is_standard_normal_and_independent():
    noise = rng.step_noise(0, "sample", range(200), (50,))
    z = torch.stack([noise(draw) for draw in range(40)]).double()  # (draws, images, numbers)
    assert stats.kstest(z.flatten(), "norm").pvalue > 0.001
    assert stats.kstest(z.square().sum(dim=2).flatten(), "chi2", args=(50,)).pvalue > 0.001
    limit = 4 / z.numel() ** 0.5
    for dim in range(3):
        neighbours = z.narrow(dim, 1, z.shape[dim] - 1) * z.narrow(dim, 0, z.shape[dim] - 1)
        assert abs(neighbours.mean()) < 1.1 * limit
    others = [("sample", 1), ("else", 0)]
    assert all(not torch.equal(z[0], rng.step_noise(s, p, range(200), (50,))(0)) for p, s in others)


def test_step_noise_has_the_tails_of_a_normal():
    """One number in 16,000 lies beyond four; no number is infinite."""
    noise = rng.step_noise(0, "tails", range(1000), (1000,))
    z = torch.cat([noise(draw) for draw in range(4)])
    expected = z.numel() * math.erfc(4 / math.sqrt(2))
    assert z.isfinite().all()
    assert abs(int((z.abs() > 4).sum()) - expected) < 4 * expected**0.5


def test_changing_a_draw_in_place_changes_no_later_one():
    noise = rng.step_noise(0, "sample", range(3), (2,))
    first = noise(0).clone()
    noise(0).zero_()
    assert torch.equal(noise(0), first)


def test_step_noise_waits_for_no_host():
    noise = rng.step_noise(0, "sample", range(3), (2,))
    with Waits() as waits:
        for draw in (0, 1, 2**20):
            noise(draw)
    assert waits.count == 0


@pytest.mark.parametrize("numbers, named", [([3, -1], "number -1"), ([2**32], "number 4294967296")])
def test_image_numbers_have_32_bits(numbers, named):
    with pytest.raises(ValueError, match=named):
        rng.step_noise(0, "sample", numbers, (2,))
    with pytest.raises(ValueError, match=named):
        rng.image_uniform(0, "sample", numbers, (2,))


@pytest.mark.parametrize("draw", [-1, 2**32])
def test_draw_numbers_have_32_bits(draw):
    with pytest.raises(ValueError, match=f"draw number {draw}"):
        rng.step_noise(0, "sample", [0], (2,))(draw)


NUMBERS = [0, 7, 2**32 - 1]


def test_uniform_numbers_of_images():
    found = rng.image_uniform(4, "steps", NUMBERS, (2, 3))
    for row, number in zip(found, NUMBERS, strict=True):
        assert torch.equal(row, rng.image_uniform(4, "steps", [number], (2, 3))[0])
        words = [philox_by_hand((b, 0, number, 1), key_words(4, "steps")) for b in (0, 1)]
        expected = [(word >> 8) / 2**24 for word in (*words[0], *words[1])][:6]
        assert row.flatten().tolist() == expected
    many = rng.image_uniform(0, "steps", range(500), (40,))
    assert many.dtype == torch.float32 and many.min() >= 0 and many.max() < 1
    assert stats.kstest(many.flatten(), "uniform").pvalue > 0.001


def test_orders_of_images():
    found = rng.image_order(4, "order", NUMBERS, 9)
    assert found.dtype == torch.int64
    for row, number in zip(found, NUMBERS, strict=True):
        assert sorted(row.tolist()) == list(range(9))
        assert torch.equal(row, rng.image_order(4, "order", [number], 9)[0])
    many = rng.image_order(0, "order", range(6000), 4)
    code = (many * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 0.001


def test_the_uses_of_one_key_share_nothing():
    uniform = rng.image_uniform(0, "x", [1], (4,))
    order = rng.philox((torch.arange(1), 0, 1, 2), torch.tensor(key_words(0, "x")))
    noise = rng.philox((torch.arange(1), 0, 1, 0), torch.tensor(key_words(0, "x")))
    bits = [(torch.cat(words) >> 8).tolist() for words in (order, noise)]
    drawn = (uniform[0] * 2**24).to(torch.int64).tolist()
    assert not set(drawn) & {*bits[0], *bits[1]}


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
