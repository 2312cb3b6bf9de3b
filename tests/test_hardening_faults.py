"""A drill on the miniature methods: a disk that is full at every kind of write, a damaged file of
every kind, a loss that is no number; and a thousand corrupted files."""

import errno
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import miniature
import pytest
import torch
from test_miniatures import assert_same, outcome

from diffbook_lib.data import unpacking
from diffbook_lib.errors import DiffbookError, Failed
from diffbook_lib.runs import checkpoint, folder, presets, records, training

METHODS = {
    "counts": {"preset": "tiny", "samples": 6},
    "ladder": {"preset": "tiny", "snapshot_every": 3, "sweep": {"seed": [0, 1]}, "samples": 6},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    with miniature.opened(tmp_path_factory.mktemp("drill")) as root:
        for method, values in METHODS.items():
            miniature.execute(root, method, {}, out=str(root / method), **values)
        for held in list(folder._locks):
            folder.unlock(held)
        yield root


def again(root: Path, method: str, run: Path) -> None:
    """The run notebook once more, as the same command does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            miniature.execute(root, method, {}, out=str(run), **METHODS[method])
    finally:
        for held in list(folder._locks):
            folder.unlock(held)


# --- a full disk ---------------------------------------------------------------------------

WRITES = {
    "counts": ["spec.json", "0000024.safetensors", "samples/", "record.json", "metrics.jsonl"],
    "ladder": ["seed-1/spec.json", "seed-1/checkpoints", "snapshots/", "samples/", "record.json"],
}


def no_room(patch, part: str) -> list[str]:
    """From now on there is no room for files of this name; which were refused."""
    refused = []

    def full(path: str) -> None:
        if part in path.replace("/.", "/"):
            refused.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain_sync, plain_open = os.fsync, Path.open

    def sync(descriptor):
        full(os.readlink(f"/proc/self/fd/{descriptor}"))
        plain_sync(descriptor)

    def opened(path, mode="r", *arguments, **named):
        if "a" in mode:
            full(str(path))
        return plain_open(path, mode, *arguments, **named)

    patch.setattr(os, "fsync", sync)
    patch.setattr(Path, "open", opened)
    return refused


@pytest.mark.parametrize(("method", "part"), [(m, part) for m in WRITES for part in WRITES[m]])
def test_a_full_disk_at_every_kind_of_write(repository, tmp_path, method, part):
    """The file and its need are named, nothing half-written stays, and with room again the run
    ends with the bits of an undisturbed one."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        refused = no_room(patch, part)
        with pytest.raises(Failed, match="could not be written: No space left") as error:
            again(repository, method, run)
    assert refused and Path(part).name in str(error.value)
    assert "MB" in str(error.value) or "metrics" in part
    assert not list(tmp_path.rglob("*.tmp")) and not (run / "record.json").exists()
    again(repository, method, run)
    assert_same(run, repository / method)


# --- a damaged file ------------------------------------------------------------------------

DAMAGED = [
    ("counts", "checkpoints/0*72.safetensors"),
    ("counts", "samples/*/*4.safetensors"),
    ("counts", "metrics.jsonl"),
    ("counts", "spec.json"),
    ("counts", "record.json"),
    ("ladder", "members/seed-1/checkpoints/0*72.safetensors"),
    ("ladder", "members/seed-0/spec.json"),
    ("ladder", "members/seed-1/samples/*/*0.safetensors"),
]


@pytest.mark.parametrize(("method", "name"), DAMAGED)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_of_every_kind(repository, tmp_path, method, name, damage):
    """The same bits, or a refusal that names the file and leaves everything as it was. Of the
    log, lines that were damaged are lost."""
    run = tmp_path / "run"
    shutil.copytree(repository / method, run)
    if name != "record.json":
        (run / "record.json").unlink()
    if name == "metrics.jsonl":  # of a run that goes on: nobody opens that of a finished one
        max((run / "checkpoints").iterdir()).unlink()
    (file,) = run.glob(name)
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    file.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    try:
        if name == "record.json":
            records.is_complete(run, presets.resolve(method, "tiny"))
            pytest.fail("a damaged record passed")
        again(repository, method, run)
    except DiffbookError as error:
        assert file.name in str(error) and file.name.endswith("json")
        assert all(path.read_bytes() == content for path, content in before.items())
    else:
        ours, theirs = outcome(run), outcome(repository / method)
        assert ours[0].keys() == theirs[0].keys() and ours[2] == theirs[2]
        assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0])
        if name == "metrics.jsonl":
            theirs[1][name][:] = [line for line in theirs[1][name] if line in ours[1][name]]
        assert ours[1] == theirs[1]


# --- a loss that is no number --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_loss_that_is_no_number_at_some_step(repository, tmp_path, method, step, monkeypatch):
    """The step and the last good checkpoint are named, that checkpoint is whole and finite, and
    without the fault the run ends with the bits of an undisturbed one."""
    run, plain = tmp_path / "run", training.Trainer._micro_batch

    def failing(trainer, micro):
        found = plain(trainer, micro)
        return found * torch.nan if trainer.step == step - 1 else found

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_micro_batch", failing)
        with pytest.raises(training.TrainingDiverged, match=f"step {step}: .*Last good checkpoint"):
            again(repository, method, run)
    (place,) = run.rglob("checkpoints")
    kept = checkpoint.newest(place)
    assert kept.samples == (step - 1) // 2 * 2 * 12
    assert all(value.isfinite().all() for value in kept.tensors.values())
    again(repository, method, run)
    assert_same(run, repository / method)


# --- corrupted files -----------------------------------------------------------------------


def corrupted(content: bytes, chance: random.Random) -> bytes:
    """The content with one thing wrong."""
    at, length = chance.randrange(len(content)), chance.randint(1, 64)
    rest, bit = content[at + length :], 1 << chance.randrange(8)
    return chance.choice(
        [
            lambda: content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :],
            lambda: content[:at] + chance.randbytes(length) + rest,
            lambda: content[:at] + bytes(length) + rest,
            lambda: content[:at] + rest,
            lambda: content[:at] + chance.randbytes(length) + content[at:],
            lambda: content[:at] + content[at : at + length] + content[at:],
            lambda: content[:at],
        ]
    )()


def tar(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


def unpacked(path: Path) -> dict[str, bytes]:
    return dict(unpacking.members(path, lambda name: True))


def loaded(path: Path) -> tuple:
    found = checkpoint.load(path)
    values = {name: (t.dtype, t.shape, t.tolist()) for name, t in found.tensors.items()}
    return values, found.info


CONTENT = {f"part/{i}.txt": random.Random(i).randbytes(300) + b"text " * 80 for i in range(3)}
KINDS = {
    "x.tar.gz": (lambda root: tar(CONTENT), unpacked),
    "x.zip": (lambda root: zipped(CONTENT), unpacked),
    "x.gz": (lambda root: gzip.compress(CONTENT["part/0.txt"]), unpacking.gunzip),
    "000000000072.safetensors": (
        lambda root: next((root / "ladder").rglob("checkpoints/*72.safetensors")).read_bytes(),
        loaded,
    ),
    "record.json": (
        lambda root: (root / "ladder" / "record.json").read_bytes(), records.read_record
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_two_hundred_corruptions_of_each_kind_are_noticed(repository, tmp_path, name):
    """Each is refused by one of the library's own errors, or what is read is the very same (some
    bytes of an archive say nothing)."""
    make, read = KINDS[name]
    whole, path, chance = make(repository), tmp_path / name, random.Random(name)
    path.write_bytes(whole)
    expected, refused = read(path), 0
    for number in range(200):
        content = corrupted(whole, chance)
        path.write_bytes(content)
        try:
            assert read(path) == expected, f"corruption {number} passes"
        except DiffbookError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


def test_a_record_without_a_sum_is_an_older_one(repository, tmp_path):
    content = json.loads((repository / "counts" / "record.json").read_text())
    expected = records.read_record(repository / "counts")
    stated = content.pop("sha256")
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert records.read_record(tmp_path) == expected
    content["training_seconds"] += 1.0
    (tmp_path / "record.json").write_text(json.dumps({**content, "sha256": stated}))
    with pytest.raises(records.RecordError, match="its SHA-256 does not match"):
        records.read_record(tmp_path)
