"""The training loop: what it computes, what it yields, and that it never waits for the device."""

import contextlib
import dataclasses
import gc
import json
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.errors import Refused
from diffbook_lib.runs import checkpoint, restoring, training
from diffbook_lib.runs.progress import watch
from diffbook_lib.runs.task import Task, learning_rate
from diffbook_lib.specs import RunSpec

SPEC = RunSpec(
    method="none",
    preset="test",
    dataset="points",
    steps=40,
    batch=16,
    lr=1e-2,
    schedule="cosine",
    warmup_steps=5,
    adam_beta2=0.99,
    weight_decay=0.01,
    ema=["power-0.1"],
    checkpoint_every=10,
    log_every=4,
)


def replace(spec, **changes):
    return type(spec)(**{**dict(spec), **changes})


def points(n=50):
    return ArrayDataset(torch.randn(n, 2, generator=rng.generator(0, "points")), levels=None)


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))


def loss(net, batch, generator):
    noise = rng.normal(batch.x.shape, generator)
    return (net(batch.x + noise) - batch.x).square().mean(1)


def task(net=None, loss=loss, **named):
    return Task(net or network(), loss, points(), **named)


def run(spec=SPEC, folder=None, dropout=0.0, **named):
    net = network(dropout)
    events = list(training.events(task(net, **named), spec, folder))
    return net, events


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("samples_per_second", "seconds")
    return [{name: v for name, v in line.items() if name not in timing} for line in lines]


def test_the_loop_is_the_textbook_loop():
    """The same training written out in plain PyTorch, with another implementation of each part."""
    net, events = run()
    data, bare = points(), network()
    optimizer = torch.optim.AdamW(
        bare.parameters(), betas=(0.9, 0.99), weight_decay=0.01, foreach=False
    )
    average, losses = torch.zeros_like(weights(bare)), []
    exponent = 6.937  # of the profile with sigma_rel = 0.1: (g + 1) = 0.01 (g + 2)^2 (g + 3)
    for n in range(SPEC.steps):
        warm = min((n + 1) / 5, 1)
        half = 0.5 + 0.5 * math.cos(math.pi * max(n - 5, 0) / 35)
        optimizer.param_groups[0]["lr"] = 1e-2 * warm * half
        batch = data.batch(0, n, 16, 0, 16)
        value = loss(bare, batch, rng.generator(0, "loss", n)).mean()
        optimizer.zero_grad()
        value.backward()
        norm = torch.cat([p.grad.flatten() for p in bare.parameters()]).norm()
        for p in bare.parameters():
            p.grad *= min(1.0, 1.0 / norm.item())
        optimizer.step()
        average += (weights(bare) - average) * (1 - (1 - 1 / (n + 1)) ** (exponent + 1))
        losses.append(value.item())
    torch.testing.assert_close(weights(net), average, rtol=1e-5, atol=1e-6)
    assert [e.step for e in events] == [4, 8, 10, 12, 16, 20, 24, 28, 30, 32, 36, 40]
    assert events[0].loss == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert events[2].loss == pytest.approx(sum(losses[8:10]) / 2, rel=1e-5)
    assert events[-1].samples == 640


def test_clipping_can_be_off():
    loose, _ = run(replace(SPEC, clip=0.0))
    wide, _ = run(replace(SPEC, clip=1e6))
    tight, _ = run(replace(SPEC, clip=1e-8))
    assert torch.equal(weights(loose), weights(wide))
    assert not torch.allclose(weights(loose), weights(tight), atol=1e-3)


def test_the_last_event_finds_the_average_in_the_network():
    net = network()
    trainer = training.Trainer(task(net), SPEC)
    for event in trainer:
        average = torch.cat(
            [p.flatten() for p in trainer.averages["power-0.1"].parameters.values()]
        )
        assert torch.equal(weights(net), average) == (event.step == SPEC.steps)
    assert not net.training


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_does_not_change_the_result(accumulate):
    whole, events = run()
    parts, others = run(replace(SPEC, accumulate=accumulate))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    assert [e.loss for e in others] == pytest.approx([e.loss for e in events], rel=1e-5)


def test_dropout_differs_between_steps_and_micro_batches():
    masks = []

    def record(net, batch, generator):
        masks.append(F.dropout(torch.ones(64), 0.5))
        return loss(net, batch, generator)

    spec = replace(SPEC, steps=2, accumulate=2)
    list(training.events(task(network(), record), spec))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


def test_a_batch_larger_than_the_data_set_is_fine():
    net, _ = run(replace(SPEC, batch=120))
    assert weights(net).isfinite().all()


def test_evaluating_the_network_at_an_event_changes_nothing():
    net, _ = run(dropout=0.2)
    other = network(0.2)
    for _ in training.events(task(other, loss), SPEC):
        other.eval()
        torch.manual_seed(5)
        other(torch.randn(3, 2))
    assert torch.equal(weights(other), weights(net))


@pytest.mark.parametrize("stop", [3, 4, 8, 17, 36])
def test_leaving_and_coming_back_is_exact(tmp_path, stop):
    """Left at an event, with dropout, into a network that starts elsewhere."""
    whole, events = run(folder=tmp_path / "whole", dropout=0.2)
    folder = tmp_path / "parts"
    for event in training.events(task(network(0.2), loss), SPEC, folder):
        if event.step >= stop:
            break
    other = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))
    rest = list(training.events(task(other, loss), SPEC, folder))
    assert rest[0].resumed and rest[0].step == event.step
    assert not any(e.resumed for e in rest[1:])
    assert torch.equal(weights(other), weights(whole))
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert [e.loss for e in rest[1:]] == [e.loss for e in events if e.step > event.step]


def test_a_finished_run_is_complete(tmp_path):
    whole, events = run(folder=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again, once = run(folder=tmp_path)
    assert once == [dataclasses.replace(events[-1], resumed=True)]
    assert torch.equal(weights(again), weights(whole)) and not again.training
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fresh = restoring.restore(nn.Sequential(*network()), tmp_path, SPEC)
    assert torch.equal(weights(fresh), weights(whole)) and not fresh.training


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_and_their_numbers(tmp_path):
    run(folder=tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["000000000480.safetensors", "000000000640.safetensors"]
    assert any((tmp_path / "tensorboard").iterdir())
    assert [line["step"] for line in metrics(tmp_path)][-2:] == [36, 40]


class Dual(nn.Module):
    """A multiplier that the mean loss of each step moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.tensor(0.0))

    def after_step(self, step, measures):
        self.value += measures["loss"] - 0.5


def constrained(dual):
    def penalised(net, batch, source):
        losses = loss(net, batch, source)
        return losses * (1 + dual.value), {"loss": losses}

    return penalised


def dual_task():
    dual = Dual()
    return task(loss=constrained(dual), state={"ema": dual}), dual


def test_state_is_saved_with_the_network(tmp_path):
    """Its name may even be that of another part."""

    def go(folder, stop=None):
        made, dual = dual_task()
        with contextlib.closing(training.events(made, SPEC, folder)) as events:
            for event in events:
                if event.step == stop:
                    break
        return weights(made.net), dual.value

    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", stop=20)
    parts = go(tmp_path / "parts")
    assert torch.equal(parts[0], whole[0]) and torch.equal(parts[1], whole[1])
    assert whole[1] != 0


@pytest.mark.parametrize("accumulate", [2, 4])
def test_measures_reach_after_step_as_the_mean_of_all_micro_batches(accumulate):
    """A multiplier ends where it ends with one batch."""
    one, first = dual_task()
    several, second = dual_task()
    events = list(training.events(one, SPEC))
    others = list(training.events(several, replace(SPEC, accumulate=accumulate)))
    torch.testing.assert_close(second.value, first.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights(several.net), weights(one.net), rtol=1e-5, atol=1e-6)
    for a, b in zip(events, others, strict=True):
        assert b.measures == pytest.approx(a.measures, rel=1e-5)
        assert set(a.measures) == {"loss"} and a.measures["loss"] > 0


def test_after_step_comes_before_the_averages_and_state_after_it():
    order = []

    class Part(nn.Module):
        def after_step(self, step, measures):
            order.append(("part", step))

    def project(step, measures):
        order.append(("task", step))
        with torch.no_grad():
            net[0].weight.fill_(3.0)

    net = network()
    spec = replace(SPEC, steps=2)
    trainer = training.Trainer(task(net, after_step=project, state={"part": Part()}), spec)
    list(trainer)
    assert order == [("task", 1), ("part", 1), ("task", 2), ("part", 2)]
    assert bool((trainer.averages["power-0.1"].parameters["0.weight"] == 3).all())


def test_parameters_of_state_and_of_a_loss_part_are_trained():
    """A learned weight of the loss, as uncertainty weighting has it."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

    scale = Scale()

    def scaled(net, batch, source):
        return loss(net, batch, source) / scale.log.exp() + scale.log

    list(training.events(task(loss=scaled, state={"scale": scale}), SPEC))
    assert scale.log.item() < -0.1


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_checkpoint_with_other_parts_is_refused(tmp_path, forgotten):
    with_state, _ = dual_task()
    first, second = (with_state, task()) if forgotten else (task(), with_state)
    list(training.events(first, SPEC, tmp_path))
    with pytest.raises(checkpoint.PartsDiffer) as error:
        list(training.events(second, SPEC, tmp_path))
    said = str(error.value)
    assert "ema/power-0.1, net, state/ema" in said and "ema/power-0.1, net" in said.replace(
        "ema/power-0.1, net, state/ema", ""
    )


def test_a_state_with_another_buffer_is_refused(tmp_path):
    made, _ = dual_task()
    list(training.events(made, SPEC, tmp_path))
    other, dual = dual_task()
    dual.register_buffer("more", torch.zeros(1))
    with pytest.raises(checkpoint.PartsDiffer, match=r"(?s)state/ema does not fit.*more"):
        list(training.events(other, SPEC, tmp_path))


def test_several_averages_each_with_its_own_entry_and_snapshots(tmp_path):
    spec = replace(
        SPEC, ema=["power-0.1", "classic-0.9"], snapshot_every=15, snapshot_precision="fp32"
    )
    net = network()
    trainer = training.Trainer(task(net), spec, tmp_path)
    list(trainer)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == [
        f"{n:012d}-{name}.safetensors"
        for n in (240, 480, 640)
        for name in ("classic-0.9", "power-0.1")
    ]
    classic = restoring.restore(network(), tmp_path, spec, "classic-0.9")
    power = restoring.restore(network(), tmp_path, spec)
    assert torch.equal(weights(power), weights(net))
    assert not torch.equal(weights(classic), weights(power))
    short = replace(spec, steps=30, schedule="constant", warmup_steps=0)
    long = replace(short, steps=40)
    for name, steps in (("short", short), ("long", long)):
        list(training.events(task(), steps, tmp_path / name))
    kept = checkpoint.load(tmp_path / "long" / "snapshots" / names[3])
    at_end = checkpoint.newest(tmp_path / "short" / "checkpoints")
    for key, value in checkpoint.part(at_end, "ema/power-0.1").items():
        assert torch.equal(kept.tensors[key], value)


def test_snapshots_in_half_precision_take_half_the_room(tmp_path):
    for precision in ("fp16", "fp32"):
        spec = replace(SPEC, snapshot_every=40, snapshot_precision=precision)
        list(training.events(task(), spec, tmp_path / precision))
    tensors = {
        p: checkpoint.load(next((tmp_path / p / "snapshots").iterdir())).tensors
        for p in ("fp16", "fp32")
    }
    for name, value in tensors["fp32"].items():
        if value.is_floating_point():
            assert torch.equal(tensors["fp16"][name], value.half())


def test_a_callable_learning_rate_takes_the_place_of_the_schedule():
    net, other = network(), network()
    list(training.events(task(net, learning_rate=lambda step: learning_rate(step, SPEC)), SPEC))
    list(training.events(task(other), SPEC))
    assert torch.equal(weights(net), weights(other))
    (event, *_) = training.events(task(learning_rate=lambda step: 1 / (7 + step)), SPEC)
    assert event.lr == pytest.approx(1 / 11)


def test_stopped_before_the_first_checkpoint_and_started_again_with_the_same_network(tmp_path):
    """As in a notebook whose cell is interrupted and run again: the half-trained weights must
    not become the start."""
    whole, _ = run()
    net = network()

    def interrupted(count=[0]):  # noqa: B006
        def broken(net, batch, source):
            count[0] += 1
            if count[0] == 7:
                raise KeyboardInterrupt
            return loss(net, batch, source)

        return broken

    with pytest.raises(KeyboardInterrupt):
        list(training.events(task(net, interrupted()), SPEC, tmp_path))
    assert not torch.equal(weights(net), weights(network()))
    list(training.events(task(net), SPEC, tmp_path))
    assert torch.equal(weights(net), weights(whole))


def test_a_suspended_training_that_wakes_late_destroys_nothing(tmp_path):
    """Stopped inside the loop's body, finished by another start, then collected."""
    net = network()
    suspended = training.events(task(net), SPEC, tmp_path)
    for event in suspended:
        if event.step == 12:
            break
    list(training.events(task(net), SPEC, tmp_path))
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    suspended.close()
    del suspended
    gc.collect()
    assert files == {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}


def test_training_closes_its_events_where_it_consumes_them(tmp_path, monkeypatch):
    """An error in the bar's loop leaves no suspended generator behind."""
    closed = []
    plain = training.Trainer.__iter__

    def recorded(self):
        try:
            yield from plain(self)
        finally:
            closed.append(True)

    def stop(events, spec):
        for _ in events:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "__iter__", recorded)
    monkeypatch.setattr(training, "watch", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        training.train(tmp_path, SPEC, task())
    assert closed == [True], caught


def test_a_whole_newer_checkpoint_is_never_removed(tmp_path):
    run(folder=tmp_path)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match="newer and whole"):
        checkpoint.save(tmp_path / "checkpoints", 16, newest.tensors, newest.info)
    assert newest.path.exists()


def test_the_host_waits_for_the_device_only_at_events():
    """Reading a number from a device tensor goes through aten._local_scalar_dense."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func.name() in ("aten::_local_scalar_dense", "aten::is_nonzero")
            return func(*args, **(kwargs or {}))

    trainer = training.Trainer(task(), SPEC)
    trainer._advance()
    with Reads():
        for _ in range(5):
            trainer._advance()
        assert Reads.count == 0
        int(torch.tensor(0))  # the counter does count
        assert Reads.count == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    steps = []

    def breaks(net, batch, generator):
        steps.append(None)
        return loss(net, batch, generator) * (bad if len(steps) == 18 else 1)

    with pytest.raises(training.TrainingDiverged) as error:
        list(training.events(task(network(), breaks), SPEC, tmp_path))
    good = tmp_path / "checkpoints" / "000000000160.safetensors"
    for part in (f"step 18: the loss is {bad}", str(good), "smaller lr (now 0.01)"):
        assert part in str(error.value)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved.path == good
    assert all(t.isfinite().all() for t in saved.tensors.values())


def test_a_gradient_that_is_not_finite_stops_the_run():
    """sqrt at 0 has a finite value and an infinite slope."""

    def breaks(net, batch, generator):
        return (loss(net, batch, generator) * 0).sqrt()

    with pytest.raises(training.TrainingDiverged, match=r"step 1: the loss is 0\.0 .* none"):
        list(training.events(task(network(), breaks), SPEC))


def test_bf16_computes_the_network_only():
    seen = set()

    def record(net, batch, generator):
        output = net(batch.x)
        seen.add((output.dtype, (batch.x @ torch.eye(2)).dtype))
        return (output - batch.x).square().mean(1)

    class Linear(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            seen.add(output.dtype)
            return output

    net = Linear(2, 2)
    list(training.events(task(net, record), replace(SPEC, precision="bf16", steps=3)))
    assert seen == {torch.bfloat16, (torch.float32, torch.float32)}
    assert net.weight.dtype == torch.float32
    run()  # and a later run in the same process can use fp32 again


def test_learning_rate_against_written_out_values():
    def rates(schedule, warmup_steps, reference_steps=0, **more):
        spec = replace(
            SPEC,
            lr=0.8,
            steps=10,
            schedule=schedule,
            warmup_steps=warmup_steps,
            reference_steps=reference_steps,
            **more,
        )
        return [learning_rate(step, spec) for step in (1, 2, 4, 5, 7, 10)]

    assert rates("constant", 0) == [0.8] * 6
    assert rates("constant", 4) == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8, 0.8])
    half = [(1 + math.cos(math.pi * k / 6)) / 2 for k in (0, 2, 5)]
    assert rates("cosine", 4) == pytest.approx([0.2, 0.4, 0.8, *(0.8 * h for h in half)])
    falling = [0.8 * math.sqrt(4 / k) for k in (5, 7, 10)]
    assert rates("inverse-sqrt", 4) == pytest.approx([0.2, 0.4, 0.8, *falling])
    late = [0.2, 0.4, 0.8, 0.8, 0.8, 0.8 * math.sqrt(7 / 10)]
    assert rates("inverse-sqrt", 4, reference_steps=7) == pytest.approx(late)
    line = [0.2, 0.4, 0.8, *(0.2 + 0.6 * (1 - k / 6) for k in (0, 2, 5))]
    assert rates("linear", 4, lr_end=0.2) == pytest.approx(line)
    ending = [0.2, 0.4, 0.8, *(0.2 + 0.6 * h for h in half)]
    assert rates("cosine", 4, lr_end=0.2) == pytest.approx(ending)
    images = rates("constant", 0, warmup_images=4 * SPEC.batch)
    assert images == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8, 0.8])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"batch is 16, which accumulate = 3 does not divide"):
        run(replace(SPEC, accumulate=3))
    with pytest.raises(Refused, match=r"r has shape \(16, 2\) for 16 examples.*shape \(16,\)"):
        run(loss=lambda net, b, s: (loss(net, b, s), {"r": b.x}))
    with pytest.raises(Refused, match=r"shape \(\) for 16 examples.*shape \(16,\)"):
        list(training.events(task(network(), lambda *a: loss(*a).mean()), SPEC))


def test_damaged_metrics_are_reported_and_dropped(tmp_path):
    run(folder=tmp_path / "whole")
    folder = tmp_path / "parts"
    for event in training.events(task(network(), loss), SPEC, folder):
        if event.step == 24:
            break
    file = folder / "metrics.jsonl"
    text = file.read_text()
    past = text.splitlines()[-1].replace('"step": 24', '"step": 28')
    file.write_text(text + past + "\n" + past[:31])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 9 is damaged and dropped"):
        run(folder=folder)
    assert metrics(folder) == metrics(tmp_path / "whole")


def test_watch_shows_rate_and_end(tmp_path, capsys):
    last = watch(training.Trainer(task(network(), loss), SPEC, tmp_path), SPEC)
    assert last.step == 40
    shown = capsys.readouterr().err
    assert "complete: 100%" in shown and "40/40" in shown and "samples/s" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = watch(training.Trainer(task(network(), loss), SPEC, tmp_path), SPEC)
    shown = capsys.readouterr().err
    assert again.resumed and "complete: 100%" in shown
    assert "?step/s" in shown.splitlines()[-1]  # nothing was trained, so there is no rate
