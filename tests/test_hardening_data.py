"""Archives, pictures and sounds that were made to do harm, or that are broken: each is refused in
a sentence, at once and without filling the memory."""

import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_files import picture, wav, write_cifar10

from diffbook_lib import data, files
from diffbook_lib.data import (
    ArchiveError,
    DataError,
    archives,
    cifar,
    picture_files,
    unpacking,
)
from diffbook_lib.data.audio import read_wav
from diffbook_lib.data.picture_files import decode


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The folder with data sets, empty, and a cache of its own."""
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# --- archives ------------------------------------------------------------------------------

MEGABYTE = gzip.compress(bytes(2**20))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_tar(path: Path) -> None:
    """1.5 KB that say they hold 40 GB."""
    block = bytearray(header("hole.png", 0, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"\x80" + (40 * 10**9).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))


def large_member(path: Path) -> None:
    start = gzip.compress(header("large.png", 300 * 2**20))
    path.write_bytes(start + MEGABYTE * 300 + gzip.compress(bytes(1024)))


def many_members(path: Path) -> None:
    """None above the limit, all together above it."""
    one = gzip.compress(header("half.txt", 2**30 // 8)) + MEGABYTE * 128
    path.write_bytes(one * 6 + gzip.compress(bytes(1024)))


def large_header(path: Path) -> None:
    """A name of 400 MB."""
    start = gzip.compress(header("x", 400 * 2**20, tarfile.GNUTYPE_LONGNAME))
    path.write_bytes(start + MEGABYTE * 401)


def large_end(path: Path) -> None:
    whole = gzip.compress(header("a.png", 0) + bytes(1024))
    path.write_bytes(whole + MEGABYTE * 1000)


def zip_of(path: Path, *sizes: int) -> None:
    """A zip whose members say that they have these sizes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("filler.txt", bytes(2**20))
        for number, size in enumerate(sizes):
            archive.writestr(f"{number}.png", b"content")
            archive.filelist[-1].file_size = size


BOMBS = {
    "sparse.tar": (sparse_tar, "'hole.png' is sparse"),
    "member.tar.gz": (large_member, "'large.png' takes 315 MB or more"),
    "members.tar.gz": (many_members, "over 200 times its own size"),
    "header.tar.gz": (large_header, "a part of it takes 4.. MB or more"),
    "end.tar.gz": (large_end, "over 200 times its own size"),
    "member.zip": (lambda path: zip_of(path, 270_000_000), "'0.png' takes 270 MB or more"),
    "members.zip": (lambda path: zip_of(path, *[200_000_000] * 3), "it unpacks to 601 MB"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_archives_that_would_fill_the_memory_are_refused(tmp_path, name):
    make, words = BOMBS[name]
    make(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 2_000_000
    with pytest.raises(ArchiveError, match=f"{name} is unsafe: .*{words}"):
        for _ in unpacking.members(tmp_path / name, lambda name: name.endswith("png")):
            pass


def test_a_gzip_file_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "x.gz").write_bytes(MEGABYTE * 300)
    with pytest.raises(ArchiveError, match=r"its content takes 268 MB or more"):
        unpacking.gunzip(tmp_path / "x.gz")


def test_what_unpacks_to_a_hundred_times_its_size_is_read(tmp_path):
    zeros = bytes(2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", zeros)
    assert dict(unpacking.members(tmp_path / "x.zip", lambda name: True)) == {"zeros": zeros}


def alter(path: Path, at: bytes, offset: int, value: bytes) -> None:
    """Overwrite what stands at an offset from every place where a signature stands."""
    content = bytearray(path.read_bytes())
    start = -1
    while (start := content.find(at, start + 1)) >= 0:
        content[start + offset : start + offset + len(value)] = value
    path.write_bytes(content)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def encrypted_zip(path: Path) -> None:
    zip_of(path, 7)
    alter(path, LOCAL, 6, b"\x01")
    alter(path, CENTRAL, 8, b"\x01")


def unknown_zip(path: Path) -> None:
    zip_of(path, 7)
    alter(path, LOCAL, 8, b"\x63")
    alter(path, CENTRAL, 10, b"\x63")


def lzma_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", bytes(range(256)) * 9)
    content = bytearray(path.read_bytes())
    content[50:54] = b"\xff" * 4
    path.write_bytes(content)


def broken_xz(path: Path) -> None:
    content = bytearray(lzma.compress(header("a.png", 0) + bytes(9000)))
    content[30:36] = b"\xff" * 6
    path.write_bytes(content)


BROKEN = {
    "encrypted.zip": (encrypted_zip, "is encrypted; give an archive without a password"),
    "unknown.zip": (unknown_zip, "packed in a way that Python cannot read"),
    "lzma.zip": (lzma_zip, "is damaged or cut off"),
    "broken.tar.xz": (broken_xz, "is damaged or cut off"),
    "text.ZIP": (lambda path: path.write_text("no zip"), "is damaged or cut off"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_archives_that_cannot_be_read_say_why(tmp_path, name):
    make, words = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(ArchiveError, match=f"{name} .*{words}"):
        dict(unpacking.members(tmp_path / name, lambda name: True))


def test_a_suffix_in_capitals_is_the_same(tmp_path):
    with zipfile.ZipFile(tmp_path / "MINE.ZIP", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.PNG", picture(size=(8, 8)))
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    for name, shape in {"MINE.ZIP": (3, 8, 8), "X.NPY": (2,)}.items():
        assert data.load("folder", path=str(tmp_path / name)).shape == shape


def refuse(monkeypatch, name: str) -> None:
    """This user may not read the files of this name (root may read all)."""
    plain = io.open

    def opened(file, *arguments, **named):
        if str(file).endswith(name):
            raise PermissionError(13, "Permission denied", str(file))
        return plain(file, *arguments, **named)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr("builtins.open", opened)


def test_what_may_not_be_read_need_not_be_deleted(tmp_path, monkeypatch, root):
    zip_of(tmp_path / "mine.zip", 7)
    write_cifar10(root)
    for name, load in {
        "mine.zip": lambda: dict(unpacking.members(tmp_path / "mine.zip", bool)),
        "cifar-10-python.tar.gz": lambda: data.load("cifar10"),
    }.items():
        with monkeypatch.context() as patch:
            refuse(patch, name)
            with pytest.raises(DataError, match=f"{name} cannot be read: Permission") as error:
                load()
        assert "elete" not in str(error.value)


def test_a_killed_download_leaves_nothing_that_stays(tmp_path, monkeypatch):
    """The next one removes what is left; one that is still at work it leaves alone."""
    import pooch

    store, file = archives.Store(tmp_path), archives.Published("a.bin", "md5:0", ("http://x",))

    def killed(url, known, name, path, **named):
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "tmpx3f").write_bytes(b"half")
        os._exit(9)

    def whole(url, known, name, path, **named):
        (Path(path) / name).write_bytes(b"whole")
        return str(Path(path) / name)

    if not (child := os.fork()):
        monkeypatch.setattr(pooch, "retrieve", killed)
        store._download("set", file)
    os.waitpid(child, 0)
    assert list((tmp_path / "set").rglob("tmp*"))
    monkeypatch.setattr(pooch, "retrieve", whole)
    other = tmp_path / "set" / f".download-{os.uname().nodename}-{os.getppid()}"
    other.mkdir()
    assert store._download("set", file).read_bytes() == b"whole"
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"a.bin", other.name}


# --- pickles -------------------------------------------------------------------------------


def pickled(shape: bytes, kind: bytes, content: bytes) -> bytes:
    """{"data": array} as Python 2 wrote it, with opcodes that push the array's shape, the name of
    its type and its content."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    numbers = b"cnumpy\ndtype\n" + kind + b"K\0K\x01\x87R(K\x03U\x01|NNNJ" + b"\xff" * 4
    state = b"(K\x01" + shape + numbers + b"J" + b"\xff" * 4 + b"K\0tb\x89" + content + b"tb"
    return b"\x80\x02}(U\x04data" + array + state + b"u."


SHAPE, U1, BYTES = b"K\x02K\x0c\x86", b"U\x02u1", b"U\x18" + bytes(range(24))
HOSTILE = {
    "objects": (pickled(SHAPE, b"U\x02O8", b"](K\x01K\x02e"), "not one of bytes"),
    "objects of bytes": (pickled(SHAPE, b"U\x02O8", BYTES), "not one of bytes"),
    "too few bytes": (pickled(b"M\xff\xffK\x0c\x86", U1, BYTES), "not one of bytes"),
    "negative": (pickled(b"J\xfe\xff\xff\xffJ\xf4\xff\xff\xff\x86", U1, BYTES), "not one of bytes"),
    "no shape": (pickled(b"U\x01x", U1, BYTES), "not one of bytes"),
    "a type for an array": (b"\x80\x02}(U\x04datacnumpy\ndtype\n)Ru.", "not one of bytes"),
    "a large memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "no attribute 'items'"),
    "many bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", ""),
    "an extension": (b"\x80\x02\x82\x01.", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_tell_nothing_to_numpy(name):
    """Arrays are made of what a pickle holds only after it was looked at; nothing is asked of the
    memory because a pickle says so."""
    import resource

    content, words = HOSTILE[name]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError, match=f"x: data_batch_1 is not a plain pickle.*{words}"):
        cifar.plain_pickle(content, "x: data_batch_1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100_000  # KiB


def test_pickles_of_python_2_and_3_are_read():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 12)
    for content in (pickled(SHAPE, U1, BYTES), pickle.dumps({b"data": pixels}, protocol=4)):
        assert np.array_equal(cifar.plain_pickle(content, "x")["data"], pixels)


@pytest.mark.parametrize("names", [7, [1, 2], None])
def test_cifar_with_other_names_of_classes(root, names, monkeypatch):
    write_cifar10(root)
    plain = cifar.plain_pickle

    def changed(content, origin):
        found = plain(content, origin)
        return {"label_names": names} if "label_names" in found else found

    monkeypatch.setattr(cifar, "plain_pickle", changed)
    with pytest.raises(ArchiveError, match="no list of the names of classes"):
        data.load("cifar10", allow_partial=True)


# --- pictures ------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    import subprocess

    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **n: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **n: started.append(a))
    with pytest.raises(ArchiveError, match=r"a\.png is not a readable picture"):
        decode(POSTSCRIPT, "x.zip: a.png")
    assert started == []
    formats = {"GIF": None, "TIFF": None, "ICO": None, "TGA": None}
    for kind in formats:
        with pytest.raises(ArchiveError, match="not a readable picture"):
            decode(picture(kind=kind), "x.zip: a.png")


def sixteen_bits(kind: str, value: int) -> bytes:
    if kind == "PPM":
        return b"P5 4 4 65535\n" + struct.pack(">H", value) * 16
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_sixteen_bits_become_eight(kind, level):
    assert (decode(sixteen_bits(kind, 257 * level), "a") == level).all()
    assert decode(sixteen_bits(kind, 257 * level), "a", size=2).shape == (3, 2, 2)


def chunk(kind: bytes, content: bytes) -> bytes:
    import zlib

    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


PNG = b"\x89PNG\r\n\x1a\n"
HEAD = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
PICTURES = {
    "png without data": PNG + HEAD + chunk(b"IEND", b""),
    "png of another chunk": PNG + HEAD + b"\0\0\0\x09garbage!!",
    "png cut off": picture(size=(64, 64))[:60],
    "png with a wrong sum": picture().replace(b"IDAT", b"IDAT\0"),
    "png of broken parts": PNG + chunk(b"IHDR", b"\0\0") + chunk(b"IDAT", b"x"),
    "ppm without size": b"P6\n",
    "ppm of letters": b"P6 a b 255\n",
    "ppm of too many digits": b"P6 99999999999999999999 4 255\n",
    "ppm cut off": b"P6 4 4 255\n123",
    "ppm in text": b"P3 2 2 255\n1 2 x",
    "jpeg cut off": picture(kind="JPEG")[:200],
    "bmp cut off": picture(kind="BMP")[:40],
    "webp cut off": picture(kind="WEBP")[:30],
    "nothing": b"",
}


@pytest.mark.parametrize("name", PICTURES)
def test_broken_pictures_are_named(name):
    with pytest.raises(ArchiveError, match=r"x\.zip: a is not a readable picture"):
        decode(PICTURES[name], "x.zip: a")


def test_a_corrected_partition_of_celeba_counts(root):
    """No image that is now in the test part stays in the training part, though the pictures are
    the same."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture((60 * number, 0, 0)))
    table = root / "celeba" / "list_attr_celeba.txt"
    table.write_text("4\nMale\n" + "".join(f"{n}.png 1\n" for n in range(4)))
    listed = root / "celeba" / "list_eval_partition.txt"

    def reds(test: set[int]) -> list[int]:
        before = listed.stat() if listed.exists() else None
        listed.write_text("".join(f"{n}.png {2 * (n in test)}\n" for n in range(4)))
        if before:  # whatever the clock says
            os.utime(listed, ns=(before.st_atime_ns, before.st_mtime_ns))
        return data.load("celeba", size=4).examples[:, 0, 0, 0].tolist()

    assert reds({0}) == [60, 120, 180]
    assert reds({2}) == [0, 60, 180]


CELEBA: dict[str, list] = {
    "list_attr_celeba.txt": ["", "4\n", "4\nMale\n0.png\n", "4\nMale\n0.png 1 1\n", b"\xff\xfe"],
    "list_eval_partition.txt": ["0.png\n", "0.png 0 0\n"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in CELEBA for content in CELEBA[name]]
)
def test_broken_tables_of_celeba_are_named(root, name, content):
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(picture())
    tables = {"list_attr_celeba.txt": "1\nMale\n0.png 1\n", "list_eval_partition.txt": "0.png 0\n"}
    for file, text in {**tables, name: content}.items():
        (root / "celeba" / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        data.load("celeba", size=4)


def test_a_list_of_sc09_in_another_alphabet_is_no_obstacle(root):
    (root / "sc09").mkdir()
    lists = {"validation_list.txt": b"one/\xffb.wav\n", "testing_list.txt": b""}
    clips = {f"{word}/a.wav": wav([1, 2, 3]) for word in ("one", "two")}
    with tarfile.open(root / "sc09" / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        for name, content in {**lists, **clips}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert data.load("sc09", allow_partial=True).size == 2


def test_stale_decoded_pictures_are_made_anew(root, tmp_path):
    """A whole file of the cache that holds other tensors than are looked for."""
    for number in range(4):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{number}.png").write_bytes(picture(size=(4, 4)))
    load = lambda: data.load("folder", path=str(tmp_path / "mine")).examples
    first = load()
    (kept,) = (tmp_path / "cache" / "examples").iterdir()
    files.write_tensors(kept, {"pictures": torch.zeros(2)}, {})
    with pytest.warns(UserWarning, match="lacks examples, labels.*made anew"):
        assert torch.equal(load(), first)


def test_the_cache_does_not_outlive_the_way_of_decoding(root, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    for number in range(4):
        (tmp_path / "mine" / f"{number}.png").write_bytes(picture(size=(4, 4)))
    data.load("folder", path=str(tmp_path / "mine"))
    monkeypatch.setattr(picture_files, "DECODING", 99)
    data.load("folder", path=str(tmp_path / "mine"))
    assert len(list((tmp_path / "cache" / "examples").iterdir())) == 2


# --- sounds --------------------------------------------------------------------------------

SOUND = wav(np.arange(1000, dtype=np.int16))
SOUNDS = {
    "cut off": (SOUND[:-500], "is cut off: it holds 750 of 1,000 samples"),
    "within a sample": (SOUND[:-501], ""),
    "within its header": (SOUND[:30], "is not a wav file"),
    "of more than there is": (
        SOUND.replace(struct.pack("<I", 2000), struct.pack("<I", 2**31)), "",
    ),
    "of no channels": (SOUND[:22] + b"\0\0" + SOUND[24:], "is not a wav file"),
    "of another kind": (SOUND[:20] + b"\x03\0" + SOUND[22:], "is not a wav file"),
    "of no format": (SOUND.replace(b"fmt ", b"fmx "), "is not a wav file"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUNDS)
def test_broken_sounds_are_named(name):
    content, words = SOUNDS[name]
    with pytest.raises(ArchiveError, match=f"a.tar: one/x.wav.*{words}"):
        read_wav(content, 16_000, "a.tar: one/x.wav")
    assert len(read_wav(SOUND, 16_000, "")) == 1000
