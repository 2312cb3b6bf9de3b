"""Checkpoints survive kills, damage and full disks, or say what is wrong."""

import errno
import json
import os
import pickle
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from diffbook_lib import ema, files
from diffbook_lib.runs import checkpoint
from diffbook_lib.runs.checkpoint import CheckpointError

TENSORS = {
    "net/weight": torch.randn(3, 4),
    "net/transposed": torch.randn(4, 3).T,
    "ema/updates": torch.tensor(7),
    "state/flags": torch.tensor([True, False]),
    "state/half": torch.randn(5).bfloat16(),
    "state/empty": torch.empty(0, 3),
}
INFO = {"step": 10, "progress": {"loss": 0.1 + 0.2, "name": "π"}}


def save(folder, samples, shift=0.0):
    tensors = {"w": torch.full((100,), samples + shift)}
    return checkpoint.save(folder, samples, tensors, {"step": samples // 10})


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def names(folder):
    return sorted(os.listdir(folder))


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path / "new" / "folder", 640, TENSORS, INFO)
    assert path.name == "000000000640.safetensors"
    loaded = checkpoint.newest(tmp_path / "new" / "folder")
    assert (loaded.samples, loaded.info, loaded.path) == (640, INFO, path)
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_tied_tensors_and_loaded_tensors_are_independent(tmp_path):
    weight = torch.ones(3)
    path = checkpoint.save(tmp_path, 1, {"a": weight, "b": weight}, {})
    loaded = checkpoint.load(path).tensors
    path.write_bytes(bytes(path.stat().st_size))  # the file is not mapped into memory any more
    loaded["a"] += 1
    assert torch.equal(loaded["a"], weight + 1) and torch.equal(loaded["b"], weight)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None
    assert checkpoint.newest(tmp_path) is None


def test_the_two_newest_are_kept(tmp_path):
    for samples in (10, 20, 30, 40):
        save(tmp_path, samples)
    assert names(tmp_path) == ["000000000030.safetensors", "000000000040.safetensors"]
    (tmp_path / ".000000000050.safetensors.tmp").write_bytes(b"left by a killed writer")
    save(tmp_path, 50)
    assert names(tmp_path) == ["000000000040.safetensors", "000000000050.safetensors"]


def test_a_whole_newer_checkpoint_is_never_removed(tmp_path):
    """Nor anything before it: another process has gone further."""
    for samples in (10, 20):
        save(tmp_path, samples)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(CheckpointError, match=r"0015\S+ is not written: \S+0020.* newer and whole"):
        save(tmp_path, 15)
    assert before == {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert save(tmp_path, 20, shift=1.0).exists()  # the same step again takes its place
    assert checkpoint.newest(tmp_path).tensors["w"][0] == 21


def test_damaged_later_checkpoints_are_removed(tmp_path):
    """As after going back to the one before: they belong to no run any more."""
    for samples in (10, 20):
        save(tmp_path, samples)
    flip(tmp_path / "000000000020.safetensors", -1)
    save(tmp_path, 15)
    assert names(tmp_path) == ["000000000010.safetensors", "000000000015.safetensors"]


def test_snapshots_are_not_pruned(tmp_path):
    run, net = tmp_path, nn.BatchNorm1d(4)  # with buffers
    net.running_mean.fill_(1 / 3)
    averages = {name: ema.EMA(net, ema.profile(name), 1) for name in ("power-0.1", "classic-0.9")}
    averages["power-0.1"].updates = 3
    for samples in (10, 20, 30, 40):
        save(run / "checkpoints", samples)
        checkpoint.snapshot(run, samples, averages, "fp16")
    assert len(names(run / "checkpoints")) == 2
    assert names(run / "snapshots") == [
        f"{samples:012d}-{name}.safetensors"
        for samples in (10, 20, 30, 40)
        for name in ("classic-0.9", "power-0.1")
    ]
    kept = checkpoint.load(run / "snapshots" / "000000000030-power-0.1.safetensors")
    assert kept.samples == 30
    assert kept.info == {"profile": "power-0.1", "precision": "fp16"}
    assert kept.tensors["weight"].dtype == torch.float16 and kept.tensors["updates"] == 3
    assert torch.equal(kept.tensors["running_mean"], net.running_mean)


def test_the_newest_file_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint yet; train the run first"):
        checkpoint.newest_file(tmp_path)
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    (tmp_path / "000000000030-power-0.1.safetensors").touch()  # no checkpoint
    assert checkpoint.newest_file(tmp_path) == path


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path):
    first, again = save(tmp_path / "a", 10), save(tmp_path / "b", 10)
    other = save(tmp_path / "c", 10, shift=1.0)
    assert len(files.stated_digest(first)) == 64
    assert files.stated_digest(first) == files.stated_digest(again) != files.stated_digest(other)


def header(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def tamper(path, change):
    """Rewrites the header of a file, whose bytes of content and digest stay as they were."""
    found, content = header(path)
    change(found)
    text = json.dumps(found).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def test_the_digest_covers_the_type(tmp_path):
    path = save(tmp_path, 10)
    tamper(path, lambda found: found["w"].update(dtype="I32"))
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        checkpoint.load(path)


def test_the_digest_covers_the_shape(tmp_path):
    path = save(tmp_path, 10)
    tamper(path, lambda found: found["w"].update(shape=[10, 10]))
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        checkpoint.load(path)


def test_the_digest_covers_names_and_information(tmp_path):
    path = save(tmp_path, 10)
    whole = path.read_bytes()
    tamper(path, lambda found: found.update(v=found.pop("w")))
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        checkpoint.load(path)
    path.write_bytes(whole)
    tamper(path, lambda found: found["__metadata__"].update(info='{"step": 2}'))
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        checkpoint.load(path)
    path.write_bytes(whole)
    tamper(path, lambda found: None)
    assert checkpoint.load(path).info == {"step": 1}  # the helper alone damages nothing


def test_every_flipped_bit_is_noticed(tmp_path):
    """Or it changed nothing: a flip may only pass where the content is the same all the same."""
    path = save(tmp_path, 10)
    whole, content = path.read_bytes(), checkpoint.load(path)
    chance = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    positions = [*range(header), *(chance.randrange(header, len(whole)) for _ in range(100))]
    noticed = 0
    for position in positions:
        flip(path, position, chance.randrange(8))
        try:
            loaded = checkpoint.load(path)
        except CheckpointError as error:
            noticed += 1
            assert str(path) in str(error)
        else:
            assert position < header and loaded.info == content.info
            assert torch.equal(loaded.tensors["w"], content.tensors["w"])
        path.write_bytes(whole)
    assert noticed >= len(positions) - 8  # the header is padded with spaces


@pytest.mark.parametrize("left", [0, 7, 50, 0.5, -1])
def test_truncated_newest_is_reported_and_the_one_before_used(tmp_path, left):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if left == 0.5 else left])
    with pytest.warns(UserWarning, match=rf"{path.name}.*continuing from 0+10\.safetensors"):
        loaded = checkpoint.newest(tmp_path)
    assert loaded.samples == 10


def test_flipped_newest_is_reported_and_the_one_before_used(tmp_path):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    flip(path, -1)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: its SHA-256 does not match"):
        assert checkpoint.newest(tmp_path).samples == 10
    save(tmp_path, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.newest(tmp_path).samples == 20


def test_all_damaged_is_an_error(tmp_path):
    first, second = save(tmp_path, 10), save(tmp_path, 20)
    flip(first, -5)
    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be used") as error:
        checkpoint.newest(tmp_path)
    assert first.name in str(error.value) and second.name in str(error.value)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "000000000010.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)
    torch.save(Trap(), path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call):
    save(tmp_path, 10)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match=r"0020\.safetensors.*No space left.*Make room"):
        save(tmp_path, 20)
    assert names(tmp_path) == ["000000000010.safetensors"]
    assert checkpoint.newest(tmp_path).samples == 10


def test_the_file_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    calls = []

    def noting(name, real):
        def call(*arguments):
            calls.append(name)
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    save(tmp_path, 10)
    assert calls == ["fsync", "replace", "fsync"]  # file, name, folder


def test_only_tensors_and_finite_json(tmp_path):
    number: Any = 0.5
    with pytest.raises(CheckpointError, match=r"state/dual is a float.*flat mapping of tensors"):
        checkpoint.save(tmp_path, 1, {"state/dual": number}, {})
    with pytest.raises(ValueError):
        checkpoint.save(tmp_path, 1, {}, {"loss": float("nan")})
    assert names(tmp_path) == []


def test_info_is_readable_without_this_library(tmp_path):
    found, _ = header(checkpoint.save(tmp_path, 1, TENSORS, INFO))
    assert json.loads(found["__metadata__"]["info"]) == INFO
