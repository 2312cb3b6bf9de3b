"""diffbook_lib.data: every loader on small files made here in the official formats."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import warnings
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffbook_lib import data
from diffbook_lib.data import (
    ArchiveError,
    ChecksumError,
    MissingDataError,
    PartialDataWarning,
    audio,
    cifar,
    text,
)
from diffbook_lib.data.picture_files import arrange, decode

rand = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The folder DIFFBOOK_DATA names, for one test; nothing is downloaded."""
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def part(name: str, split: str = "train", **options):
    """Load a file that is not the official one, as every small file here is."""
    with pytest.warns(PartialDataWarning, match="must not be compared with published"):
        dataset = data.load(name, split, allow_partial=True, **options)
    about = data.describe(name, **options)
    expected = dataset.shape, dataset.levels, dataset.discrete, dataset.kind
    assert (about.shape, about.levels, about.discrete, about.kind) == expected
    return dataset


def tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def zipped(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def picture(colour=(255, 0, 0), size=(64, 64), mode="RGB", kind="PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(out, kind)
    return out.getvalue()


def wav(samples, rate=16_000, channels=1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.asarray(samples, "<i2").tobytes())
    return out.getvalue()


# --- MNIST ---------------------------------------------------------------------------------


def write_idx(folder: Path, stem: str, values: np.ndarray) -> Path:
    header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-ubyte.gz"
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return path


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files(root, name):
    pixels, labels = rand.integers(0, 256, (5, 28, 28)), np.array([3, 1, 4, 1, 5])
    write_idx(root / name, "t10k-images-idx3", pixels)
    write_idx(root / name, "t10k-labels-idx1", labels)
    dataset = part(name, "test")
    assert dataset.shape == (1, 28, 28)
    assert np.array_equal(dataset.examples[:, 0].numpy(), pixels)
    assert dataset.labels.tolist() == labels.tolist()
    assert "5 of 10,000 images" in dataset.description
    with pytest.raises(ChecksumError, match=r"t10k-images-idx3-ubyte.gz: md5 expected"):
        data.load(name, "test")


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((5, 28, 28)), np.zeros(4)),
        (np.zeros((2, 28, 28)), np.array([0, 10])),
        (np.zeros((2, 28)), np.zeros(2)),
    ],
)
def test_idx_files_that_contradict_themselves(root, pixels, labels):
    write_idx(root / "mnist", "train-images-idx3", pixels)
    write_idx(root / "mnist", "train-labels-idx1", labels)
    with pytest.raises(ArchiveError):
        data.load("mnist", allow_partial=True)


def test_idx_file_with_bytes_missing(root):
    path = write_idx(root / "mnist", "train-images-idx3", np.zeros((3, 28, 28)))
    for content in (gzip.decompress(path.read_bytes())[:-1], b"\0\0\x08\x03", b"x"):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ArchiveError, match="is not an IDX file of 3 dimensions"):
            data.load("mnist", allow_partial=True)


# --- CIFAR ---------------------------------------------------------------------------------


def write_cifar10(root: Path, **changes: object) -> tuple[Path, np.ndarray]:
    """Two images a batch; `changes` replace entries of data_batch_3."""
    pixels = rand.integers(0, 256, (6, 2, 3072)).astype(np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = {name: {b"data": pixels[i], b"labels": [i, 9]} for i, name in enumerate(names)}
    batches["data_batch_3"].update({key.encode(): value for key, value in changes.items()})
    batches["batches.meta"] = {b"label_names": [f"class{i}".encode() for i in range(10)]}
    path = root / "cifar10" / "cifar-10-python.tar.gz"
    files = {f"cifar-10-batches-py/{n}": pickle.dumps(b, protocol=4) for n, b in batches.items()}
    tar(path, files)
    return path, pixels


def test_cifar10(root, monkeypatch):
    path, pixels = write_cifar10(root)
    train, test = part("cifar10"), part("cifar10", "test")
    assert np.array_equal(train.examples.numpy(), pixels[:5].reshape(10, 3, 32, 32))
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.labels.tolist() == [5, 9]
    assert train.classes == tuple(f"class{i}" for i in range(10))
    checksum = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    official = cifar.CIFAR10._replace(file=cifar.CIFAR10.file._replace(checksum=checksum))
    monkeypatch.setattr(cifar, "CIFAR10", official)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("cifar10").size == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [1]},
        {"labels": [1, 10]},
        {"labels": None},
        {"data": np.zeros((2, 3072))},
        {"data": np.zeros((2, 100), np.uint8)},
        {"data": "x"},
        {"data": io.BytesIO},
    ],
)
def test_cifar10_with_wrong_content(root, changes):
    write_cifar10(root, **changes)
    with pytest.raises(ArchiveError, match=r"cifar-10-python.tar.gz"):
        data.load("cifar10", allow_partial=True)


def test_cifar10_with_a_batch_missing_or_the_end_cut_off(root):
    path, _ = write_cifar10(root)
    whole = path.read_bytes()
    tar(path, {"cifar-10-batches-py/data_batch_1": pickle.dumps({})})
    with pytest.raises(ArchiveError, match=r"lacks batches.meta, data_batch_2"):
        data.load("cifar10", allow_partial=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChecksumError):
        data.load("cifar10")
    with pytest.raises(ArchiveError, match="damaged or cut off"):
        data.load("cifar10", allow_partial=True)


def test_cifar100_takes_the_fine_labels(root):
    pixels = rand.integers(0, 256, (2, 3072)).astype(np.uint8)
    batch = {b"data": pixels, b"fine_labels": [99, 4], b"coarse_labels": [1, 2]}
    meta = {b"fine_label_names": [b"c"] * 100}
    files = {"train": batch, "test": batch, "meta": meta}
    path = root / "cifar100" / "cifar-100-python.tar.gz"
    tar(path, {f"cifar-100-python/{n}": pickle.dumps(c, protocol=4) for n, c in files.items()})
    dataset = part("cifar100")
    assert dataset.labels.tolist() == [99, 4] and len(dataset.classes) == 100


# --- text8 ---------------------------------------------------------------------------------


def test_text8_splits(root):
    letters = "abcdefghi " * 100
    zipped(root / "text8" / "text8.zip", {"text8": letters.encode()})
    train, valid, test = (part("text8", split, length=10) for split in text.SPLITS)
    assert (train.size, valid.size, test.size) == (90, 5, 5)
    assert text.decode(valid.examples.flatten()) == "abcdefghi " * 5
    assert train.batch(0, 0, 4).x.dtype == torch.int64
    assert "1,000 of 100,000,000 characters" in train.description
    sizes = {"splits": (100, 20, 880), "length": 10}
    assert part("text8", "test", **sizes).size == 88
    for splits in ((900, 100, 1), (0.9, 0.2, 0.1), (1, 2), (-1, 2, 3)):
        with pytest.raises(ValueError, match="splits"):
            data.load("text8", splits=splits, allow_partial=True)
    with pytest.raises(ValueError, match="length is 51; the valid part of text8 has 50"):
        data.load("text8", "valid", length=51, allow_partial=True)


def test_text8_with_other_symbols(root):
    zipped(root / "text8" / "text8.zip", {"text8": b"abc\ndef"})
    with pytest.raises(ArchiveError, match="byte 0xa at position 3"):
        data.load("text8", allow_partial=True)
    zipped(root / "text8" / "text8.zip", {"other": b""})
    with pytest.raises(ArchiveError, match="lacks the file text8"):
        data.load("text8", allow_partial=True)


# --- sound ---------------------------------------------------------------------------------


def test_sc09(root):
    files = {
        "./validation_list.txt": b"one/a_nohash_0.wav\nbed/a_nohash_0.wav\n",
        "./testing_list.txt": b"nine/a_nohash_0.wav\n",
        "./bed/a_nohash_0.wav": b"not looked at",
        "./_background_noise_/x.wav": b"not looked at",
        "./zero/b_nohash_1.wav": wav(np.full(20_000, 7)),
        "./zero/a_nohash_0.wav": wav([1, -2, 3]),
        "./one/a_nohash_0.wav": wav([4]),
        "./nine/a_nohash_0.wav": wav([5]),
    }
    tar(root / "sc09" / "speech_commands_v0.02.tar.gz", files)
    train, valid, test = (part("sc09", split) for split in ("train", "valid", "test"))
    assert train.shape == (16_000,)
    assert train.examples[0, :4].tolist() == [1, -2, 3, 0]
    assert train.examples[1].unique().tolist() == [7]
    assert [d.labels.tolist() for d in (train, valid, test)] == [[0, 0], [1], [9]]
    assert train[:].x[0, 0] == pytest.approx((1 + 2**15) / 32767.5 - 1, abs=1e-7)
    assert train.as_levels()[:].x[0, 1] == 2**15 - 2


def test_sc09_without_its_lists(root):
    tar(root / "sc09" / "speech_commands_v0.02.tar.gz", {"zero/a.wav": wav([1])})
    with pytest.raises(ArchiveError, match=r"lacks testing_list.txt, validation_list.txt"):
        data.load("sc09", allow_partial=True)


def test_fsdd(root):
    inner = "free-spoken-digit-dataset-1.0.10/recordings/"
    clips = {f"{d}_theo_{i}.wav": wav([d * 10 + i] * 9000, 8_000) for d in (0, 7) for i in (4, 5)}
    path = root / "fsdd" / "free-spoken-digit-dataset-1.0.10.tar.gz"
    tar(path, {inner + name: content for name, content in clips.items()})
    train, test = part("fsdd"), part("fsdd", "test", length=10_000)
    assert train.shape == (8_000,) and train.examples[:, 0].tolist() == [5, 75]
    assert test.shape == (10_000,) and test.labels.tolist() == [0, 7]
    assert test.examples[1, 8999:9001].tolist() == [74, 0]
    assert part("fsdd", rate=16_000).shape == (16_000,)


def test_resampling_keeps_a_tone():
    tone = lambda rate: 10_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    resampled = audio.resample(tone(8_000).astype(np.int16), 8_000, 16_000)
    assert len(resampled) == 16_000
    assert np.abs(resampled - tone(16_000))[200:-200].max() < 30


@pytest.mark.parametrize("content", [b"RIFF", b"", wav([1], 44_100), wav([1, 1], 8_000, 2)])
def test_other_sounds_are_refused(content):
    with pytest.raises(ArchiveError, match=r"x.wav"):
        audio.read_wav(content, 8_000, "x.wav")


# --- pictures ------------------------------------------------------------------------------


def test_tiny_imagenet(root):
    inner = "tiny-imagenet-200/"
    files = {
        "wnids.txt": b"n02\nn01\n",
        "words.txt": b"n01\tgoldfish, Carassius\nn02\ttoad\n",
        "val/val_annotations.txt": b"val_0.JPEG\tn01\t0\t0\t9\t9\nval_1.JPEG\tn02\t0\t0\t9\t9\n",
        "train/n01/images/n01_0.JPEG": picture((255, 0, 0), mode="RGB"),
        "train/n02/images/n02_0.JPEG": picture((9, 9, 9), mode="L"),
        "train/n02/n02_boxes.txt": b"n02_0.JPEG\t0\t0\t9\t9\n",
        "val/images/val_0.JPEG": picture((1, 2, 3)),
        "val/images/val_1.JPEG": picture((4, 5, 6)),
        "test/images/test_0.JPEG": b"not looked at",
    }
    path = root / "tiny-imagenet" / "tiny-imagenet-200.zip"
    zipped(path, {inner + name: content for name, content in files.items()})
    train, test = part("tiny-imagenet"), part("tiny-imagenet", "test")
    assert train.classes == ("toad", "goldfish")
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [1, 0]
    assert train.examples[:, :, 0, 0].tolist() == [[255, 0, 0], [9, 9, 9]]
    assert test.examples[:, :, 5, 5].tolist() == [[1, 2, 3], [4, 5, 6]]
    files["val/images/val_1.JPEG"] = files["val/images/val_1.JPEG"][:40]
    zipped(path, {inner + name: content for name, content in files.items()})
    with pytest.raises(ArchiveError, match=r"val_1.JPEG is not a readable picture"):
        data.load("tiny-imagenet", "test", allow_partial=True)


def test_cifar10_jpeg(root):
    files = {
        "train/dog/0000.jpg": picture((0, 255, 0), (32, 32)),
        "train/airplane/0000.jpg": picture((255, 0, 0), (32, 32)),
        "test/truck/0000.jpg": picture((0, 0, 255), (32, 32)),
    }
    tar(root / "cifar10-jpeg" / "cifar10-jpeg.tar.gz", files)
    train, test = part("cifar10-jpeg"), part("cifar10-jpeg", "test")
    assert train.labels.tolist() == [0, 5] and test.labels.tolist() == [9]
    assert "JPEG copy" in train.description
    assert train.examples[0, :, 0, 0].tolist() == [255, 0, 0]


def ramp(width: int, height: int) -> bytes:
    """A picture whose red says the column and whose green says the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(40, 20, 10, 0), (20, 40, 0, 10), (178, 218, 0, 20)]
)
def test_the_central_square_is_cut_out_of_wide_and_tall_pictures(width, height, left, top):
    side = min(width, height)
    square = decode(ramp(width, height), "x.png", side)
    assert square.shape == (3, side, side)
    assert square[0, side // 2].tolist() == list(range(left, left + side))
    assert square[1, :, side // 2].tolist() == list(range(top, top + side))
    whole = decode(ramp(width, height), "x.png")
    assert whole.shape == (3, height, width)


def test_arrangement_by_parts_and_classes():
    names = ["top/train/cat/b.png", "top/train/ant/x.JPG", "top/test/cat/y.png", "top/a.txt"]
    found = arrange(names, ("train", "test"))
    assert found.classes == ("ant", "cat")
    assert found.parts == {"train": {names[0]: 1, names[1]: 0}, "test": {names[2]: 1}}
    flat = arrange(["a.png", "b.png", ".hidden.png", "__MACOSX/a.png"])
    assert flat.classes == () and flat.parts == {"": {"a.png": 0, "b.png": 0}}
    mixed = arrange(["cat/a.png", "b.png"])
    assert mixed.classes == ()
    assert arrange(["train/cat/a.png", "train/dog/a.png"]).classes == ("cat", "dog")
    assert arrange([]).parts == {}


def test_celeba(root):
    folder = root / "celeba"
    names = [f"{i:06d}.jpg" for i in range(1, 5)]
    colours = [(50 * i, 0, 0) for i in range(4)]
    zipped(
        folder / "img_align_celeba.zip",
        {
            f"img_align_celeba/{n}": picture(c, (178, 218))
            for n, c in zip(names, colours, strict=True)
        },
    )
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{n} {p}\n" for n, p in zip(names, "0102", strict=True))
    )
    with pytest.raises(MissingDataError, match=r"list_attr_celeba.txt not found.*Google Drive"):
        data.load("celeba")
    rows = "".join(f"{n}  {a} -1\n" for n, a in zip(names, ("1", "-1", "-1", "1"), strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"4\nMale Young\n{rows}")
    train = data.load("celeba", size=32)
    assert train.shape == data.describe("celeba", size=32).shape == (3, 32, 32)
    assert train.labels.tolist() == [1, 0] and train.examples[:, 0, 9, 9].tolist() == [0, 100]
    assert data.load("celeba", "test", attribute="Young").classes == ("not Young", "Young")
    with pytest.raises(ValueError, match="attribute 'Old' is none of Male, Young"):
        data.load("celeba", attribute="Old")


def test_celebahq_and_imagenet(root):
    for name in ("celebahq", "imagenet", "celeba"):
        with pytest.raises(MissingDataError, match=rf"{name}: .* not found in .*DIFFBOOK_DATA"):
            data.load(name)
    (root / "celebahq").mkdir(parents=True)
    (root / "celebahq" / "0.png").write_bytes(picture(size=(512, 512)))
    assert data.load("celebahq").shape == data.describe("celebahq").shape == (3, 256, 256)
    zipped(
        root / "imagenet" / "imagenet.zip", {"val/n01/x.JPEG": picture(), "train/n01/x.JPEG": b""}
    )
    assert data.load("imagenet", "test", size=8).shape == (3, 8, 8)
