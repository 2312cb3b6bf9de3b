"""The tests of runs have teeth: a line changed on purpose makes a named one fail.

The first tests here look at what no other quick one sees: event files, shares of several
processes, batches of samples.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import miniature
import pytest
import test_checkpoint
import test_estimate
import test_folder
import test_records
import test_training
import torch
from swaps import swap
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from test_mutations import Mutation

from diffbook_lib import files
from diffbook_lib.runs import (
    checkpoint,
    estimate,
    folder,
    presets,
    progress,
    records,
    sampling,
    sweeps,
    task,
    training,
    workers,
)


def board(run: Path) -> dict[str, list[int]]:
    """The steps that TensorBoard shows for each curve of a run: a start drops what earlier files
    hold from its step on."""
    files = [list(EventFileLoader(str(path)).Load()) for path in (run / "tensorboard").iterdir()]
    shown: dict[str, list[int]] = {}
    for event in (e for file in sorted(files, key=lambda f: f[0].wall_time) for e in file):
        if event.session_log.status == SessionLog.START:
            shown = {tag: [s for s in steps if s < event.step] for tag, steps in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append(event.step)
    return shown


def test_steps_trained_again_stand_once_in_metrics_and_tensorboard(tmp_path):
    """Killed at step 19, after the events of steps 12 and 16 and the checkpoint of step 10."""

    def broken(net, batch, source, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == 19:
            raise KeyboardInterrupt
        return test_training.loss(net, batch, source), {"again": batch.x[:, 0]}

    def whole(net, batch, source):
        return test_training.loss(net, batch, source), {"again": batch.x[:, 0]}

    with pytest.raises(KeyboardInterrupt):
        list(training.events(test_training.task(loss=broken), test_training.SPEC, tmp_path))
    assert board(tmp_path)["loss"] == [4, 8, 10, 12, 16]
    list(training.events(test_training.task(loss=whole), test_training.SPEC, tmp_path))
    steps = [4, 8, 10, 12, 16, 20, 24, 28, 30, 32, 36, 40]
    assert [line["step"] for line in test_training.metrics(tmp_path)] == steps
    shown = board(tmp_path)
    assert set(shown) == {"loss", "lr", "grad_norm", "samples_per_second", "measures/again"}
    assert all(found == steps for found in shown.values()), shown


def test_means_over_processes(monkeypatch):
    """Of two processes, the other holding three times as much; each tensor keeps its shape."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(1 + 3))
    two = SimpleNamespace(count=2)
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(5.0), torch.ones(4)]
    expected = [2 * tensor for tensor in tensors]
    workers.Workers.average(two, tensors)
    assert all(map(torch.equal, tensors, expected))


def member(repository: Path, **changes) -> sweeps.Member:
    """A trained run of ten images of one number each, drawn four at a time."""
    spec = presets.resolve("ladder", "tiny", {"steps": 2, **changes})
    names: dict[str, Any] = {"asked": []}

    def draw(numbers, nfe):
        names["asked"].append((nfe, numbers))
        return torch.tensor(numbers, dtype=torch.uint8)[:, None] * nfe, nfe

    net = torch.nn.Linear(2, 2)
    names |= {"draw": draw, "task": task.Task(net, None, None)}
    found = sweeps.Member(spec, repository / "run", {"seed": 9}, names)
    saved(found, 0.5)
    return found


def saved(member: sweeps.Member, value: float, samples: int = 24) -> None:
    """A checkpoint whose average is filled with a value."""
    state = {"weight": torch.full((2, 2), value), "bias": torch.full((2,), value)}
    state["updates"] = torch.tensor(1)
    tensors = {f"ema/power-0.1/{name}": tensor for name, tensor in state.items()}
    checkpoint.save(member.folder / "checkpoints", samples, tensors, {"parts": []})


def test_images_are_drawn_in_batches_by_their_numbers(repository):
    run = member(repository, table={"nfe": [3]})
    first, second = sampling.sample(run)
    numbers = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert run.names["asked"] == [(nfe, part) for nfe in (5, 3) for part in numbers]
    assert (first.at, first.nfe) == ({"seed": 9, "nfe": 5}, 5)
    assert (second.at, second.nfe) == ({"seed": 9, "nfe": 3}, 3)
    assert torch.equal(first.x, 5 * torch.arange(10, dtype=torch.uint8)[:, None])
    assert first.x.dtype == torch.uint8 and first.seconds > 0
    assert sampling.sample(run)[1].seconds == second.seconds and len(run.names["asked"]) == 6


def test_samples_of_other_weights_are_drawn_anew(repository):
    """From the average of the newest checkpoint."""
    run = member(repository)
    sampling.sample(run)
    assert run.task.net.weight[0, 0] == 0.5
    saved(run, 0.25, samples=36)
    sampling.sample(run)
    assert len(run.names["asked"]) == 6
    assert run.task.net.weight[0, 0] == 0.25 and not run.task.net.training


def test_processes_share_the_batches(repository, monkeypatch):
    """Each draws its own, together all of them, none twice."""
    run = member(repository, table={"nfe": [3, 4]})
    for index in (1, 0):
        one = SimpleNamespace(index=index, count=2, device=torch.device("cpu"), is_first=False)
        monkeypatch.setattr(sampling, "Workers", lambda place, one=one: one)
        sampling.draw_missing(run)
    asked = [(nfe, tuple(numbers)) for nfe, numbers in run.names["asked"]]
    assert len(asked) == len(set(asked)) == 9
    assert asked[:4] == [(5, (4, 5, 6, 7)), (3, (0, 1, 2, 3)), (3, (8, 9)), (4, (4, 5, 6, 7))]


# --- the mutants ---------------------------------------------------------------------------


def in_a_folder(test):
    """The test on a folder of its own."""

    def run(*arguments):
        with tempfile.TemporaryDirectory() as place:
            test(Path(place), *arguments)

    return run


def in_a_repository(test, *fixtures):
    """The test on a checkout of the miniatures of its own and what `fixtures` make of it."""

    def run(*arguments):
        with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
            patch.setenv("DIFFBOOK_ROOT", place)
            root = miniature.write(Path(place).resolve())
            try:
                made = [fixture(root, patch) for fixture in fixtures] or [root]
                test(*made, *arguments)
            finally:
                for held in list(folder._locks):
                    folder.unlock(held)

    return run


def with_patch(test):
    """The test with a monkeypatch."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            test(patch, *arguments)

    return run


root = lambda repository, patch: repository
patch = lambda repository, patch: patch
run_folder = lambda repository, patch: repository / "run"
counts = lambda repository, patch: presets.resolve("counts", "tiny")
ladder = lambda repository, patch: presets.resolve("ladder", "tiny")

ORDER = test_training.test_after_step_comes_before_the_averages_and_state_after_it
RESUMED = in_a_folder(test_training.test_leaving_and_coming_back_is_exact)
SNAPSHOTS = in_a_folder(test_training.test_several_averages_each_with_its_own_entry_and_snapshots)
BY_HAND = in_a_repository(test_estimate.test_every_figure_of_a_small_run_by_hand)
PRICED = in_a_repository(test_estimate.test_all_members_are_priced)
BATCHES = in_a_repository(test_images_are_drawn_in_batches_by_their_numbers)
ONCE = in_a_folder(test_steps_trained_again_stand_once_in_metrics_and_tensorboard)
WRITTEN = in_a_repository(
    test_folder.test_the_specification_is_written_under_the_lock, run_folder, counts, patch
)

STEP = "    self.optimizer.step()\n    self.optimizer.zero_grad()\n"
HOOKS = "    for hook in self.hooks:\n        hook(self.step, measures)\n"
AVERAGES = "    for average in self.averages.values():\n        average.update(self.net)\n"
COUNT = """\
    self.step += 1
    measures = dict(zip(self.names, found[1:], strict=True))
"""

MUTATIONS = [
    Mutation(
        training.Trainer._advance,
        ".mean(0)",
        ".sum(0)",
        test_training.test_measures_reach_after_step_as_the_mean_of_all_micro_batches,
        (2,),
    ),
    Mutation(
        training.Trainer._advance,
        STEP + COUNT + HOOKS,
        COUNT + HOOKS + STEP,
        ORDER,
    ),
    Mutation(
        training.Trainer._advance,
        HOOKS + AVERAGES,
        AVERAGES + HOOKS,
        ORDER,
    ),
    Mutation(
        training.Trainer._advance,
        "self.rate(self.step + 1)",
        "self.rate(self.step)",
        test_training.test_the_loop_is_the_textbook_loop,
    ),
    Mutation(
        training.Trainer._advance,
        "self.step % every",
        "(self.step - 1) % every",
        SNAPSHOTS,
    ),
    Mutation(
        training.Trainer._advance,
        "finished or ",
        "",
        SNAPSHOTS,
    ),
    Mutation(
        training.Trainer._snapshot,
        "self.averages",
        "dict(list(self.averages.items())[:1])",
        SNAPSHOTS,
    ),
    Mutation(
        training.Trainer._micro_batch,
        "(loss / spec.accumulate)",
        "loss",
        test_training.test_accumulation_does_not_change_the_result,
        (4,),
    ),
    Mutation(
        training.Trainer._micro_batch,
        'f"dropout {share}"',
        '"dropout"',
        test_training.test_dropout_differs_between_steps_and_micro_batches,
    ),
    Mutation(
        training.Trainer._micro_batch,
        "rng.Share(noise, start, stop, spec.batch)",
        "rng.Share(noise, 0, rows, spec.batch)",
        test_training.test_accumulation_does_not_change_the_result,
        (4,),
    ),
    Mutation(
        training.Trainer._restore,
        "self.optimizer.state.update(moments)",
        "pass",
        RESUMED,
        (17,),
    ),
    Mutation(
        training.Trainer._finish,
        "self.net.eval()",
        "pass",
        test_training.test_the_last_event_finds_the_average_in_the_network,
    ),
    Mutation(
        training.Trainer.__iter__,
        "elif self.saved is None:",
        "elif False:",
        in_a_folder(
            test_training.test_stopped_before_the_first_checkpoint_and_started_again_with_the_same_network
        ),
    ),
    Mutation(
        workers.Workers.average,
        "flat /= self.count",
        "pass",
        with_patch(test_means_over_processes),
    ),
    Mutation(
        task.learning_rate,
        "spec.warmup_images / spec.batch",
        "spec.warmup_images",
        test_training.test_learning_rate_against_written_out_values,
    ),
    Mutation(
        files._digest,
        "\\0{tensor.dtype}",
        "",
        in_a_folder(test_checkpoint.test_the_digest_covers_the_type),
    ),
    Mutation(
        files._digest,
        "\\0{tuple(tensor.shape)}",
        "",
        in_a_folder(test_checkpoint.test_the_digest_covers_the_shape),
    ),
    Mutation(
        files._digest,
        "info.encode()",
        "",
        in_a_folder(test_checkpoint.test_the_digest_covers_names_and_information),
    ),
    Mutation(
        checkpoint.save,
        "[-KEPT:]",
        "[-1:]",
        in_a_folder(test_checkpoint.test_the_two_newest_are_kept),
    ),
    Mutation(
        checkpoint.save,
        "if _is_whole(found):",
        "if False:",
        in_a_folder(test_checkpoint.test_a_whole_newer_checkpoint_is_never_removed),
    ),
    Mutation(
        checkpoint.save,
        "if kept <= path",
        "",
        in_a_folder(test_checkpoint.test_damaged_later_checkpoints_are_removed),
    ),
    Mutation(
        checkpoint.load_run,
        'if (saved := found.info["parts"]) != sorted(parts):',
        'if not (saved := found.info["parts"]):',
        in_a_folder(test_training.test_a_checkpoint_with_other_parts_is_refused),
        (True,),
    ),
    Mutation(
        estimate.member_cost,
        "4 * (every + averages + 3 * trainable)",
        "4 * (every + 3 * trainable)",
        BY_HAND,
    ),
    Mutation(
        estimate.member_cost,
        "averages, images = len(spec.ema) * every",
        "averages, images = every",
        in_a_repository(test_estimate.test_averages_take_memory_and_disk),
    ),
    Mutation(
        estimate.member_cost,
        "4 * (every + averages + 2 * trainable)",
        "4 * (every + averages + trainable)",
        in_a_repository(test_estimate.test_a_checkpoint_and_snapshots_have_the_estimated_size),
    ),
    Mutation(
        estimate.member_cost,
        "spec.calls() * forward",
        "forward",
        in_a_repository(test_estimate.test_every_way_of_sampling_is_counted),
    ),
    Mutation(
        estimate.estimate,
        ' + whole["sampling_flops"]',
        "",
        PRICED,
    ),
    Mutation(
        estimate.estimate,
        "sum(cost[name]",
        "max(cost[name]",
        PRICED,
    ),
    Mutation(
        sampling.draw_missing,
        "min(first + spec.sample_batch, spec.samples)",
        "first + spec.sample_batch",
        BATCHES,
    ),
    Mutation(
        sampling.draw_missing,
        "range(first, ",
        "range(first + 1, ",
        BATCHES,
    ),
    Mutation(
        sampling.draw_missing,
        "batches[workers.index :: workers.count]",
        "batches",
        in_a_repository(test_processes_share_the_batches, root, patch),
    ),
    Mutation(
        sampling._is_there,
        'info.get("weights") == weights and ',
        "",
        in_a_repository(test_samples_of_other_weights_are_drawn_anew),
    ),
    Mutation(
        progress.Log.__init__,
        ", purge_step=step + 1",
        "",
        ONCE,
    ),
    Mutation(
        progress.Log.__init__,
        "purge_step=step + 1",
        "purge_step=step",
        ONCE,
    ),
    Mutation(
        progress.Log._forget_after,
        '["step"] <= step',
        '["step"] <= step + 6',
        ONCE,
    ),
    Mutation(
        folder.open_run,
        "lock(folder)",
        "folder.mkdir(exist_ok=True)",
        WRITTEN,
    ),
    Mutation(
        folder.open_run,
        "if not check(folder, spec):",
        'if not (folder / "spec.json").exists():',
        WRITTEN,
    ),
    Mutation(
        folder.lock,
        "folder.is_relative_to(inherited)",
        "inherited",
        in_a_repository(
            test_folder.test_a_lock_that_was_inherited_is_for_its_folder, run_folder, patch
        ),
    ),
    Mutation(
        records.spreads,
        "[found.name, at]",
        "[at]",
        test_records.test_names_are_not_mixed_up_in_spreads,
    ),
    Mutation(
        records.Record.select,
        "found.at.get(key, ...) == value",
        "key in found.at",
        in_a_repository(test_records.test_figures_are_selected_by_coordinates, run_folder, ladder),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: " ".join(str(m).split())[:100])
def test_a_changed_line_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mutation.check(*mutation.arguments)
