"""diffbook_lib.data: somebody's own pictures."""

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffbook_lib import data
from diffbook_lib.data import ArchiveError, ChecksumError, DataError, MissingDataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(red: int, size=(8, 8)) -> bytes:
    """Its file's size does not depend on the colour."""
    out = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(out, "BMP")
    return out.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def own(path, **values) -> SimpleNamespace:
    return SimpleNamespace(dataset="folder", path=str(path), **values)


def reds(dataset) -> list[int]:
    return dataset.examples[:, 0, 0, 0].tolist()


# --- pictures ------------------------------------------------------------------------------

ANIMALS = {f"{kind}/{i}.png": picture(10 * k + i) for k, kind in enumerate("ac") for i in range(10)}


def packed(folder: Path, form: str) -> Path:
    """The folder as it is, or packed as the form says."""
    if form == "folder":
        return folder
    path = folder.parent / f"animals.{form}"
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in reversed(files):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, f"w:{form.rpartition('.')[2]}") as archive:
            for file in files:
                archive.add(file, str(file.relative_to(folder)))
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz", "tar.xz"])
def test_pictures_labelled_by_subfolder_with_a_fixed_tenth_held_out(tmp_path, form):
    path = packed(write(tmp_path / "animals", {**ANIMALS, "README.txt": b"not looked at"}), form)
    about = data.check(own(path))
    assert (about.kind, about.shape, about.levels) == ("images", (3, 8, 8), 256)
    assert about.classes == ("a", "c") and about.class_count == 2
    for _ in range(2):  # the second time from the cache
        train, test = data.training(own(path)), data.held_out(own(path))
        assert (train.size, test.size) == (18, 2) and train.shape == about.shape
        assert sorted([*reds(train), *reds(test)]) == list(range(20))
        assert all(red // 10 == k for red, k in zip(reds(train), train.labels, strict=True))
        assert train.classes == ("a", "c")
    assert train.description == f"all but a random tenth, 18 of 20 images of {path.name}"
    assert test.description == f"a random tenth, 2 of 20 images of {path.name}"
    assert data.fingerprint(own(path)) == data.fingerprint(own(tmp_path / "animals"))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_set_apart_is_held_out(tmp_path, held_out):
    files = {"train/a/1.png": picture(1), "train/b/2.png": picture(2), "extra/3.png": picture(3)}
    path = write(tmp_path / "set", {**files, f"{held_out}/b/4.png": picture(4)})
    train, test = data.training(own(path)), data.held_out(own(path))
    assert (reds(train), reds(test)) == ([1, 2], [4])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert train.description == "set, train: 2 images"
    assert test.description == f"set, {held_out}: 1 images"


def test_pictures_in_one_place_have_no_labels(tmp_path):
    path = write(tmp_path / "flat", {f"{i}.png": picture(i) for i in range(4)})
    train = data.training(own(path))
    assert train.labels is None and train.classes == ()
    assert data.check(own(path)).class_count == 0


def test_size_makes_squares_of_pictures_of_several_shapes(tmp_path):
    files = {"a.png": picture(1, (8, 12)), "b.png": picture(2, (12, 8)), "c.png": picture(3)}
    path = write(tmp_path / "p", files)
    assert data.check(own(path, size=4)).shape == (3, 4, 4)
    assert data.training(own(path, size=4)).shape == (3, 4, 4)
    assert data.check(own(path)).shape == (3, 12, 8)
    with pytest.raises(ArchiveError, match=r"2 shapes|3 shapes"):
        data.training(own(path))


def test_a_check_reads_names_and_one_picture(tmp_path):
    path = write(tmp_path / "p", {"a.png": picture(1), "b.png": b"damaged", "c.png": b""})
    assert data.check(own(path)).shape == (3, 8, 8)
    with pytest.raises(ArchiveError, match=r"b.png is not a readable picture"):
        data.training(own(path))


# --- changed data --------------------------------------------------------------------------


def changes(path: Path):
    """What can be done to a folder of pictures, none of it seen in sizes and times."""
    file = path / "a" / "0.png"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    content = picture(99)
    assert len(content) == file.stat().st_size, "a change that a file's size does not show"
    file.write_bytes(content)
    os.utime(file, ns=times)
    yield "other bytes"
    file.write_bytes(ANIMALS["a/0.png"])
    file.rename(path / "c" / "other.png")
    yield "another name"
    (path / "c" / "other.png").rename(file)
    write(path, {"c/new.png": picture(1)})
    yield "one more"
    (path / "c" / "new.png").unlink()
    (path / "c" / "1.png").unlink()
    yield "one fewer"


def test_changed_data_are_refused_with_both_hashes(tmp_path):
    path = write(tmp_path / "p", ANIMALS)
    digest = data.fingerprint(own(path))
    assert len(digest) == 64
    assert data.training(own(path, data_hash=digest)).size == 18
    for change in changes(path):
        now = data.fingerprint(own(path))
        assert now != digest, change
        for load in (data.training, data.held_out):
            with pytest.raises(ChecksumError, match=f"{now[:8]}.*started with {digest[:8]}"):
                load(own(path, data_hash=digest))


def test_decoded_pictures_of_before_do_not_hide_a_change(tmp_path):
    path = write(tmp_path / "p", ANIMALS)
    before = data.training(own(path)), data.held_out(own(path))
    next(changes(path))
    after = data.training(own(path)), data.held_out(own(path))
    values = lambda pair: sorted(reds(pair[0]) + reds(pair[1]))
    assert values(before) == list(range(20))
    assert values(after) == [*range(1, 20), 99]


def test_what_is_no_picture_changes_nothing(tmp_path):
    path = write(tmp_path / "p", ANIMALS)
    digest = data.fingerprint(own(path))
    write(path, {".DS_Store": b"x", "notes.txt": b"y", "a/._0.png": b"z"})
    assert data.fingerprint(own(path)) == digest
    assert data.training(own(path)).size == 18
    copy = shutil.copytree(path, tmp_path / "elsewhere")
    assert data.fingerprint(own(copy)) == digest


# --- refusals ------------------------------------------------------------------------------


def test_places_that_hold_no_data_are_refused(tmp_path):
    with pytest.raises(MissingDataError, match="does not exist"):
        data.check(own(tmp_path / "nowhere"))
    with pytest.raises(ArchiveError, match="holds no pictures"):
        data.check(own(write(tmp_path / "empty", {"notes.txt": b""})))
    write(tmp_path, {"x.pt": b"", "x.zip": b"PK"})
    with pytest.raises(DataError, match=r"must be a folder of pictures or a file that ends in"):
        data.check(own(tmp_path / "x.pt"))
    with pytest.raises(ArchiveError, match="damaged"):
        data.check(own(tmp_path / "x.zip"))


def test_parameters_that_would_do_nothing_are_refused(tmp_path):
    array, points = tmp_path / "x.npy", tmp_path / "points.npy"
    np.save(array, np.zeros((20, 4, 4), np.uint8))
    np.save(points, np.zeros((5, 2)))
    pictures = write(tmp_path / "p", ANIMALS)
    for wrong, message in (
        (own(array, size=8), "size is 8, but x.npy holds an array"),
        (own(pictures, levels=16), "levels is 16, but pictures have 256"),
        (own(pictures, length=3), "takes no length"),
        (own(points, flip=True), "holds points; set flip = False"),
        (own(points, dequantise=True), "no levels to spread"),
    ):
        with pytest.raises(DataError, match=message):
            data.check(wrong)
    assert data.training(own(array, flip=True, dequantise=True)).dequantise


def test_own_data_can_be_loaded_by_name_without_a_warning(tmp_path):
    path = write(tmp_path / "p", ANIMALS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("folder", "test", path=str(path), size=4).shape == (3, 4, 4)
