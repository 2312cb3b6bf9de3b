"""diffbook_lib.data.Grouped: several data sets in one batch."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbook_lib import data
from diffbook_lib.data import ArrayDataset, Batch, Grouped
from diffbook_lib.errors import Refused


def numbered(n: int, first: int = 0, **options) -> ArrayDataset:
    """n one-pixel images labelled first, first + 1, ..."""
    number = torch.arange(first, first + n)
    return ArrayDataset(number.view(n, 1, 1, 1).to(torch.uint8), number, **options)


def grouped(*rows: int) -> Grouped:
    """Groups of 20 examples, labelled from 0, 100, 200 on."""
    return Grouped({f"g{i}": (numbered(20, 100 * i), n) for i, n in enumerate(rows)})


groups_and_cuts = st.lists(st.integers(1, 9), min_size=1, max_size=3).flatmap(
    lambda rows: st.tuples(st.just(rows), st.sets(st.integers(1, max(1, sum(rows) - 1))))
)


def shares(dataset: Grouped, step: int, total: int, cuts: set[int]) -> list[Batch]:
    edges = [0, *sorted(cut for cut in cuts if cut < total), total]
    return [dataset.batch(1, step, total, a, b) for a, b in pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(groups_and_cuts, st.integers(0, 9))
def test_any_split_of_a_grouped_batch_gives_the_same_rows(layout, step):
    rows, cuts = layout
    whole = grouped(*rows).batch(1, step, sum(rows))
    parts = shares(grouped(*rows), step, sum(rows), cuts)
    for name in ("x", "label", "group"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert torch.bincount(whole.group, minlength=len(rows)).tolist() == rows
    assert torch.equal(whole.label // 100, whole.group), "each row carries its own group"
    for part in parts:
        assert torch.equal(part.weights, whole.weights)


@settings(max_examples=60, deadline=None)
@given(groups_and_cuts)
def test_means_over_shares_are_means_over_groups(layout):
    """Weights come from the counts of the whole batch: exact under the most uneven split."""
    rows, cuts = layout
    total = sum(rows)
    loss = lambda batch: batch.label.double().square()
    whole = grouped(*rows).batch(1, 0, total)
    mean = sum(p.by_group(loss(p)).sum(dim=1) for p in shares(grouped(*rows), 0, total, cuts))
    for g in range(len(rows)):
        expected = loss(whole)[whole.group == g].mean().item()
        assert (mean[g] / total).item() == pytest.approx(expected, rel=1e-6)


def test_means_over_uneven_shares_are_means_over_groups():
    """Three processes of 1, 2 and 5 rows, some without a row of the minority."""
    whole = grouped(6, 2).batch(1, 0, 8)
    parts = shares(grouped(6, 2), 0, 8, {1, 3})
    mean = sum(p.by_group(p.label.double()).sum(dim=1) for p in parts) / 8
    expected = [whole.label[whole.group == g].double().mean().item() for g in (0, 1)]
    assert mean.tolist() == pytest.approx(expected, rel=1e-6)


def test_other_groups_numbers_do_not_reach_a_mean():
    whole = grouped(3, 1).batch(1, 0, 4)
    values = torch.where(whole.group == 1, torch.inf, 1.0)
    assert whole.by_group(values).mean(dim=1).tolist() == [1, torch.inf]


def test_the_order_within_a_group_is_that_of_the_data_set_alone():
    main, minority = numbered(20), numbered(5, 100)
    both = Grouped({"main": (main, 6), "minority": (minority, 2)})
    for step in (0, 7):
        batch = both.batch(3, step, 8)
        for g, (part, rows) in enumerate(((main, 6), (minority, 2))):
            alone = part.batch(3, step, rows)
            assert torch.equal(batch.label[batch.group == g], alone.label)
            assert torch.equal(batch.x[batch.group == g], alone.x)


def test_groups_are_spread_evenly_over_the_batch():
    group = grouped(256, 64).batch(0, 0, 320).group
    assert [int((part == 1).sum()) for part in group.chunk(8)] == [8] * 8
    assert grouped(256, 64).groups == ("g0", "g1")


def test_dequantised_and_mirrored_groups_are_the_same_in_any_split():
    make = lambda: Grouped(
        {
            "a": (ArrayDataset(torch.arange(40).byte().view(10, 1, 2, 2), dequantise=True), 3),
            "b": (ArrayDataset(torch.arange(40).byte().view(10, 1, 2, 2), flip=True), 5),
        }
    )
    whole = make().batch(0, 4, 8)
    assert whole.label is None
    parts = [make().batch(0, 4, 8, a, b).x for a, b in ((0, 1), (1, 6), (6, 8))]
    assert torch.equal(torch.cat(parts), whole.x)


def test_labels_only_where_every_group_has_them():
    bare = ArrayDataset(torch.zeros(4, 1, 1, 1).byte())
    mixed = Grouped({"labelled": (numbered(4), 3), "bare": (bare, 1)})
    assert all(mixed.batch(0, 0, 4, i, i + 1).label is None for i in range(4))


def test_streams_and_arrays_go_together():
    points = data.from_tensor(torch.zeros(10, 2), None, "zeros", "")
    both = Grouped({"zeros": (points, 2), "toy": (data.load("mixture9"), 6)})
    batch = both.batch(0, 0, 8)
    assert both.shape == (2,) and both.size == float("inf")
    assert (batch.x[batch.group == 0] == 0).all()
    assert torch.equal(batch.x[batch.group == 1], data.load("mixture9").batch(0, 0, 6).x)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="batch is 9, but its groups are 3 of g0 \\+ 5 of g1: 8"):
        grouped(3, 5).batch(0, 0, 9)
    with pytest.raises(ValueError, match=r"rows 4\.\.9 of batch 0 of 8"):
        grouped(3, 5).batch(0, 0, 8, 4, 9)
    with pytest.raises(Refused, match="at least one row"):
        grouped(3, 0)
    wide = ArrayDataset(torch.zeros(3, 1, 2, 2).byte())
    with pytest.raises(Refused, match="one shape"):
        Grouped({"a": (numbered(3), 1), "b": (wide, 1)})
    with pytest.raises(Refused, match="one shape and form"):
        Grouped({"a": (numbered(3), 1), "b": (numbered(3).as_levels(), 1)})
    with pytest.raises(ValueError, match="has no groups"):
        numbered(3).batch(0, 0, 3).by_group(torch.zeros(3))


def test_a_grouped_data_set_moves_as_one():
    moved = grouped(2, 3).to("meta").batch(0, 0, 5)
    assert {t.device.type for t in moved if t is not None} == {"meta"}
