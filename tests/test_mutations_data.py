"""The tests of data sets have teeth: a line changed on purpose makes a named one fail."""

import tempfile
from pathlib import Path

import pytest
import test_data
import test_data_arrays
import test_data_choice
import test_data_files
import test_data_grouped
import test_data_own
from swaps import swap
from test_mutations import Mutation

from diffbook_lib.data import (
    ArrayDataset,
    Grouped,
    SampledDataset,
    arrays,
    batches,
    choice,
    levels,
    own,
    picture_files,
)


def in_a_folder(test):
    """The test on a folder of its own, with nothing decoded before."""

    def run(*arguments):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("DIFFBOOK_CACHE", f"{folder}/cache")
            test(Path(folder), *arguments)

    return run


CROP = test_data_files.test_the_central_square_is_cut_out_of_wide_and_tall_pictures
SPLIT = test_data_grouped.test_dequantised_and_mirrored_groups_are_the_same_in_any_split
CHANGED = in_a_folder(test_data_own.test_changed_data_are_refused_with_both_hashes)
OWN = in_a_folder(test_data_own.test_pictures_labelled_by_subfolder_with_a_fixed_tenth_held_out)

MUTATIONS = [
    Mutation(
        picture_files.decode,
        "(picture.height - side) // 2",
        "0",
        CROP,
        (178, 218, 0, 20),
    ),
    Mutation(
        picture_files.decode,
        "(picture.width - side) // 2",
        "0",
        CROP,
        (40, 20, 10, 0),
    ),
    Mutation(
        picture_files.decode,
        ".transpose(2, 0, 1)",
        ".transpose(2, 1, 0)",
        CROP,
        (20, 40, 0, 10),
    ),
    Mutation(
        ArrayDataset.batch,
        "chosen.flip(-1)",
        "chosen.flip(-2)",
        test_data.test_mirroring_is_fair_new_each_epoch_and_the_same_for_every_batch_size,
    ),
    Mutation(
        ArrayDataset._epoch,
        '"flip", epoch',
        '"flip", 0',
        test_data.test_mirroring_is_fair_new_each_epoch_and_the_same_for_every_batch_size,
    ),
    Mutation(
        ArrayDataset._epoch,
        '"order", epoch',
        '"order", 0',
        test_data.test_every_epoch_has_its_own_order,
    ),
    Mutation(
        ArrayDataset._stream,
        "min(offset + last - first, len(self))",
        "offset + last - first",
        test_data.test_a_batch_of_three_and_a_half_epochs_holds_every_example_three_or_four_times,
    ),
    Mutation(
        ArrayDataset.batch,
        "noise = rng.Share(keyed, first - step * total, last - step * total, total)",
        "noise = rng.Share(keyed, 0, last - first, last - first)",
        SPLIT,
    ),
    Mutation(
        batches.positions,
        "step * total + stop",
        "step * total + total",
        SPLIT,
    ),
    Mutation(
        SampledDataset.batch,
        "x[start:stop]",
        "x[: (stop or total) - start]",
        test_data.test_streams_are_keyed_and_shared,
    ),
    Mutation(
        ArrayDataset.batch,
        '"dequantise", step',
        '"dequantise", 0',
        test_data.test_dequantisation_is_keyed_by_the_step_and_keeps_the_levels,
    ),
    Mutation(
        levels.dequantise,
        "- 0.5",
        "* 0.5",
        test_data.test_dequantised_levels_fill_their_bins,
        (17,),
    ),
    Mutation(
        levels.to_unit,
        "(count - 1) / 2",
        "count / 2",
        test_data.test_levels_become_the_unit_interval_and_come_back,
    ),
    Mutation(
        ArrayDataset.halves,
        "order[self.size // 2 :]",
        "order[: self.size // 2]",
        test_data.test_halves_are_disjoint_and_together_everything,
        (1500,),
    ),
    Mutation(
        batches.Batch.by_group,
        "self.weights[:, None] * values",
        "values",
        test_data_grouped.test_means_over_uneven_shares_are_means_over_groups,
    ),
    Mutation(
        Grouped._layout,
        "len(self._group) / torch.bincount(self._group)",
        "len(group) / torch.bincount(group, minlength=len(self.parts))",
        test_data_grouped.test_means_over_uneven_shares_are_means_over_groups,
    ),
    Mutation(
        Grouped._layout,
        "group.argsort(stable=True).argsort()",
        "group.argsort(stable=True)",
        test_data_grouped.test_the_order_within_a_group_is_that_of_the_data_set_alone,
    ),
    Mutation(
        own.content_hash,
        "{name}\\0",
        "",
        CHANGED,
    ),
    Mutation(
        own.content_hash,
        "hashlib.sha256(content).hexdigest()",
        "len(content)",
        CHANGED,
    ),
    Mutation(
        own.folder,
        "if data_hash and digest != data_hash:",
        "if False:",
        CHANGED,
    ),
    Mutation(
        own.folder,
        "own-{digest[:32]}-",
        "own-{place.name}-",
        in_a_folder(test_data_own.test_decoded_pictures_of_before_do_not_hide_a_change),
    ),
    Mutation(
        own._tenth,
        "order[held_out:]",
        "order",
        OWN,
        ("folder",),
    ),
    Mutation(
        picture_files.arrange,
        "number[folder[name]]",
        "0",
        OWN,
        ("zip",),
    ),
    Mutation(
        arrays._channels_first,
        "examples.permute(0, 3, 1, 2).contiguous()",
        "examples.reshape(shape[0], shape[3], shape[1], shape[2])",
        in_a_folder(test_data_arrays.test_channels_are_moved_not_reshaped),
    ),
    Mutation(
        choice.held_out,
        '_load(spec, "test")',
        '_load(spec, "train")',
        test_data_choice.test_the_training_part_is_as_the_specification_says,
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_line_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mutation.check(*mutation.arguments)
