"""diffbook_lib.data: somebody's own array files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_data_own import own

from diffbook_lib import data
from diffbook_lib.data import ArchiveError, ChecksumError

GREY = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4)
LABELS = np.arange(20) % 3


def save(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, arrays["examples"])
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        tensors = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_with_labels(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", examples=GREY, labels=LABELS)
    about, train, test = data.check(own(path)), data.training(own(path)), data.held_out(own(path))
    assert (about.kind, about.shape, about.levels) == ("images", (1, 4, 4), 256)
    assert about.class_count == 3 and about.classes == train.classes == ("0", "1", "2")
    assert (train.size, test.size) == (18, 2)
    rows = np.concatenate([train.examples.numpy(), test.examples.numpy()])[:, 0]
    labels = torch.cat([train.labels, test.labels]).numpy()
    assert sorted(rows.tolist()) == sorted(GREY.tolist())
    assert {(r.tobytes(), k) for r, k in zip(rows, labels, strict=True)} == {
        (r.tobytes(), k) for r, k in zip(GREY, LABELS, strict=True)
    }


@pytest.mark.parametrize(
    ("array", "options", "kind", "shape", "levels"),
    [
        (GREY, {}, "images", (1, 4, 4), 256),
        (GREY % 17, {"levels": 17}, "images", (1, 4, 4), 17),
        (np.zeros((5, 6, 7, 3), np.uint8), {}, "images", (3, 6, 7), 256),
        (np.zeros((5, 3, 6, 7), np.uint8), {}, "images", (3, 6, 7), 256),
        (np.zeros((5, 1, 8, 8), ">f4"), {}, "images", (1, 8, 8), None),
        (np.zeros((5, 2)), {}, "points", (2,), None),
        (np.arange(10).reshape(5, 2), {"levels": 10}, "text", (2,), 10),
        (np.full((5, 2), 999, ">u2"), {"levels": 1000}, "text", (2,), 1000),
    ],
)
def test_arrays_of_every_form(tmp_path, array, options, kind, shape, levels):
    path = save(tmp_path / "x.npy", examples=array)
    about, train = data.check(own(path, **options)), data.training(own(path, **options))
    assert (about.kind, about.shape, about.levels) == (kind, shape, levels)
    assert (train.kind, train.shape, train.levels) == (kind, shape, levels)
    assert about.discrete == train.discrete == (kind == "text")


def test_channels_are_moved_not_reshaped(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (9, 5, 6, 3)).astype(np.uint8)
    train = data.training(own(save(tmp_path / "x.npy", examples=array)))
    kept = {image.tobytes() for image in array}
    assert all(x.permute(1, 2, 0).contiguous().numpy().tobytes() in kept for x in train.examples)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.arange(10).reshape(5, 2), {}, "holds torch.int64; set levels"),
        (np.arange(10).reshape(5, 2), {"levels": 9}, "from 0 to 9, but 9 levels are 0 to 8"),
        (np.arange(-1, 9).reshape(5, 2), {"levels": 20}, "integers from -1 to 8"),
        (np.full((5, 2), 1.5), {}, r"values from 1.5 to 1.5; scale to \[-1, 1\]"),
        (np.full((5, 2), np.nan), {}, "values from nan"),
        (np.zeros((5, 2)), {"levels": 5}, "which have no levels"),
        (np.zeros(5), {}, r"shape \(5,\)"),
        (np.zeros((0, 2)), {}, "there must be some"),
        (np.zeros((5, 2), complex), {}, "complex128, neither"),
        (np.array([[{"a": 1}]]), {}, "object, neither integer nor float"),
        (np.zeros((1, 2)), {}, "holds one example"),
    ],
)
def test_arrays_that_are_no_examples_are_refused(tmp_path, array, options, message):
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ArchiveError, match=message):
        data.training(own(path, **options))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GREY, "y": GREY}, "holds the arrays x, y; name one of them examples"),
        ({"examples": GREY, "labels": LABELS[:3]}, r"labels are torch.int64 of the shape \(3,\)"),
        ({"examples": GREY, "labels": LABELS - 1}, "20 integers from 0 on"),
    ],
)
def test_archives_of_arrays_that_contradict_themselves(tmp_path, arrays, message):
    with pytest.raises(ArchiveError, match=message):
        data.check(own(save(tmp_path / "x.npz", **arrays)))


def test_pickles_in_arrays_are_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    for name, save_ in (("x.npy", np.save), ("x.npz", np.savez)):
        save_(tmp_path / name, np.array([[Evil()]], dtype=object), allow_pickle=True)
        with pytest.raises(ArchiveError, match="object"):
            data.training(own(tmp_path / name))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_cut_off_array_files_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", examples=GREY)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=f"x{suffix}"):
            data.training(own(path))


def test_a_check_reads_only_the_header_of_an_array(tmp_path):
    path = save(tmp_path / "x.npy", examples=np.zeros((1000, 4, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    assert data.check(own(path)).shape == (1, 4, 4)


def test_a_changed_array_is_refused(tmp_path):
    path = save(tmp_path / "x.npy", examples=GREY)
    digest = data.fingerprint(own(path))
    save(path, examples=GREY[::-1])
    with pytest.raises(ChecksumError, match="has changed"):
        data.training(own(path, data_hash=digest))
