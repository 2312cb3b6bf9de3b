"""The training loop: what it computes, what it yields, and that it never waits for the device."""

import json
import math
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from diffbook_lib import checkpoint, rng, train
from diffbook_lib.data import ArrayDataset


@dataclass(frozen=True)
class Spec:
    seed: int = 0
    steps: int = 40
    batch: int = 16
    accumulate: int = 1
    lr: float = 1e-2
    schedule: str = "cosine"
    warmup_steps: int = 5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: str = "power"
    ema_value: float = 0.1
    precision: str = "fp32"
    checkpoint_every: int = 10
    log_every: int = 4


SPEC = Spec()


def points(n=50):
    return ArrayDataset(torch.randn(n, 2, generator=rng.generator(0, "points")), levels=None)


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))


def loss(net, batch, generator):
    noise = rng.normal(batch.x.shape, generator)
    return (net(batch.x + noise) - batch.x).square().mean(1)


def run(spec=SPEC, folder=None, dropout=0.0, **named):
    net = network(dropout)
    events = list(train.train(net, loss, points(), spec, folder, **named))
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
    exponent = train.EMA(bare, "power", 0.1).exponent
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
    trainer = train.Trainer(net, loss, points(), SPEC)
    for event in trainer:
        average = torch.cat([p.flatten() for p in trainer.ema.parameters.values()])
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
    list(train.train(network(), record, points(), spec))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


def test_evaluating_the_network_at_an_event_changes_nothing():
    net, _ = run(dropout=0.2)
    other = network(0.2)
    for _ in train.train(other, loss, points(), SPEC):
        other.eval()
        torch.manual_seed(5)
        other(torch.randn(3, 2))
    assert torch.equal(weights(other), weights(net))


@pytest.mark.parametrize("stop", [3, 4, 8, 17, 36])
def test_leaving_and_coming_back_is_exact(tmp_path, stop):
    """Left at an event, with dropout, into a network that starts elsewhere."""
    whole, events = run(folder=tmp_path / "whole", dropout=0.2)
    folder = tmp_path / "parts"
    for event in train.train(network(0.2), loss, points(), SPEC, folder):
        if event.step >= stop:
            break
    other = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))
    rest = list(train.train(other, loss, points(), SPEC, folder))
    assert rest[0].resumed and rest[0].step == event.step
    assert not any(e.resumed for e in rest[1:])
    assert torch.equal(weights(other), weights(whole))
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert [e.loss for e in rest[1:]] == [e.loss for e in events if e.step > event.step]


def test_a_finished_run_is_complete(tmp_path):
    whole, events = run(folder=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again, once = run(folder=tmp_path)
    assert once == [replace(events[-1], resumed=True)]
    assert torch.equal(weights(again), weights(whole)) and not again.training
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fresh = train.averaged(nn.Sequential(*network()), tmp_path)
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


class Dual:
    """A multiplier that each step moves."""

    def __init__(self):
        self.value = torch.tensor(0.0)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_further_state_is_saved_with_the_network(tmp_path):
    def constrained(dual):
        def penalised(net, batch, generator):
            losses = loss(net, batch, generator)
            dual.value = dual.value + losses.mean().detach()
            return losses * (1 + dual.value)

        return penalised

    def go(folder, stop=None):
        dual, net = Dual(), network()
        events = train.train(net, constrained(dual), points(), SPEC, folder, state={"ema": dual})
        for event in events:
            if event.step == stop:
                break
        return weights(net), dual.value

    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", stop=20)
    parts = go(tmp_path / "parts")
    assert torch.equal(parts[0], whole[0]) and torch.equal(parts[1], whole[1])


def test_the_host_waits_for_the_device_only_at_events():
    """Reading a number from a device tensor goes through aten._local_scalar_dense."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func.name() in ("aten::_local_scalar_dense", "aten::is_nonzero")
            return func(*args, **(kwargs or {}))

    trainer = train.Trainer(network(), loss, points(), SPEC)
    trainer._advance()
    with Reads():
        for _ in range(5):
            trainer._advance()
        assert Reads.count == 0
        trainer.ema.updates += int(torch.tensor(0))  # the counter does count
        assert Reads.count == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    steps = []

    def breaks(net, batch, generator):
        steps.append(None)
        return loss(net, batch, generator) * (bad if len(steps) == 18 else 1)

    with pytest.raises(train.TrainingDiverged) as error:
        list(train.train(network(), breaks, points(), SPEC, tmp_path))
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

    with pytest.raises(train.TrainingDiverged, match=r"step 1: the loss is 0\.0 .* none"):
        list(train.train(network(), breaks, points(), SPEC))


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
    list(train.train(net, record, points(), replace(SPEC, precision="bf16", steps=3)))
    assert seen == {torch.bfloat16, (torch.float32, torch.float32)}
    assert net.weight.dtype == torch.float32
    run()  # and a later run in the same process can use fp32 again


def test_learning_rate_against_written_out_values():
    def rates(schedule, warmup_steps, reference_steps=0):
        spec = SimpleNamespace(
            lr=0.8,
            steps=10,
            schedule=schedule,
            warmup_steps=warmup_steps,
            reference_steps=reference_steps,
        )
        return [train.learning_rate(step, spec) for step in (1, 2, 4, 5, 7, 10)]

    assert rates("constant", 0) == [0.8] * 6
    assert rates("constant", 4) == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8, 0.8])
    half = [(1 + math.cos(math.pi * k / 6)) / 2 for k in (0, 2, 5)]
    assert rates("cosine", 4) == pytest.approx([0.2, 0.4, 0.8, *(0.8 * h for h in half)])
    falling = [0.8 * math.sqrt(4 / k) for k in (5, 7, 10)]
    assert rates("inverse-sqrt", 4) == pytest.approx([0.2, 0.4, 0.8, *falling])
    late = [0.2, 0.4, 0.8, 0.8, 0.8, 0.8 * math.sqrt(7 / 10)]
    assert rates("inverse-sqrt", 4, reference_steps=7) == pytest.approx(late)
    with pytest.raises(ValueError, match=r"'linear'.*constant, cosine, inverse-sqrt"):
        rates("linear", 0)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"batch is 16.*multiple of 3.*accumulate = 3"):
        run(replace(SPEC, accumulate=3))
    with pytest.raises(ValueError, match="batch is 64 but the data set has 50 examples"):
        run(replace(SPEC, batch=64))
    with pytest.raises(ValueError, match=r"2 processes were asked for but 1 take part.*2$"):
        run(processes=2)
    with pytest.raises(ValueError, match=r"shape \(\) for 16 examples.*shape \(16,\)"):
        list(train.train(network(), lambda *a: loss(*a).mean(), points(), SPEC))


def test_damaged_metrics_are_reported_and_dropped(tmp_path):
    run(folder=tmp_path / "whole")
    folder = tmp_path / "parts"
    for event in train.train(network(), loss, points(), SPEC, folder):
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
    last = train.watch(train.train(network(), loss, points(), SPEC, tmp_path), SPEC)
    assert last.step == 40
    shown = capsys.readouterr().err
    assert "complete: 100%" in shown and "40/40" in shown and "samples/s" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train.watch(train.train(network(), loss, points(), SPEC, tmp_path), SPEC)
    shown = capsys.readouterr().err
    assert again.resumed and "complete: 100%" in shown
    assert "?step/s" in shown.splitlines()[-1]  # nothing was trained, so there is no rate
