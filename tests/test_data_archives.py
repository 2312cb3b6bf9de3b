"""diffbook_lib.data.archives: downloads, checksums, damage and hostile archives."""

import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from functools import partial

import pytest
import torch

from diffbook_lib.data import ArchiveError, ChecksumError, DataError, MissingDataError
from diffbook_lib.data import archives as A
from diffbook_lib.data import unpacking as U
from diffbook_lib.data.cifar import plain_pickle
from diffbook_lib.errors import Refused
from diffbook_lib.files import cached_tensors


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, for one test."""
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def everything(path) -> dict[str, bytes]:
    return dict(U.members(path, lambda name: True))


def tar_of(path, files: dict[str, bytes], mode: str = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path, files: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# --- finding and downloading ---------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """(folder, address) of an HTTP server on this machine that counts what it is asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()
        thread.join()


def published(content: bytes, *urls: str) -> A.Published:
    return A.Published("file.bin", f"md5:{hashlib.md5(content).hexdigest()}", urls)


def test_a_missing_file_is_downloaded_once_and_from_the_mirror_that_works(server, tmp_path):
    folder, address, asked = server
    (folder / "file.bin").write_bytes(b"content")
    store = A.Store(tmp_path / "data")
    file = published(b"content", address + "gone.bin", address + "file.bin")
    found = store.get("set", file)
    assert found.path == tmp_path / "data" / "set" / "file.bin"
    assert found.path.read_bytes() == b"content"
    assert "/gone.bin" in asked
    count = len(asked)
    assert store.get("set", file) == found
    assert len(asked) == count, "a file that is there needs no network"


def test_a_download_with_another_checksum_leaves_nothing(server, tmp_path):
    folder, address, _ = server
    (folder / "file.bin").write_bytes(b"tampered")
    store = A.Store(tmp_path / "data", allow_partial=True)
    with pytest.raises(ChecksumError) as error:
        store.get("set", published(b"content", address + "file.bin"))
    for part in (
        "file.bin",
        hashlib.md5(b"content").hexdigest(),
        hashlib.md5(b"tampered").hexdigest(),
    ):
        assert part in str(error.value)
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []


def test_a_read_only_folder_is_read_and_never_written(server, tmp_path, cache):
    folder, address, _ = server
    (folder / "file.bin").write_bytes(b"content")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o555)
    found = A.Store(shared).get("set", published(b"content", address + "file.bin"))
    assert found.path == cache / "set" / "file.bin"
    assert list(shared.iterdir()) == []
    assert A.Store(shared).get("set", published(b"content")) == found


def test_an_unobtainable_file_is_named_with_the_steps(tmp_path):
    store = A.Store(tmp_path / "data")
    with pytest.raises(MissingDataError, match=r"set: file.bin .* is not in .*Ask the authors and"):
        store.get("set", published(b"")._replace(steps="Ask the authors"))
    closed = "http://127.0.0.1:9/file.bin"
    with pytest.raises(MissingDataError, match=rf"download failed: {closed}.*DIFFBOOK_DATA"):
        store.get("set", published(b"", closed))


def test_another_checksum_is_refused_unless_welcome(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.bin").write_bytes(b"part")
    file, found = published(b"whole"), hashlib.md5(b"part").hexdigest()
    message = rf"set.file\.bin: md5 expected {file.checksum[4:]}, found {found}.*allow_partial=True"
    with pytest.raises(ChecksumError, match=message):
        A.Store(tmp_path).get("set", file)
    store = A.Store(tmp_path, allow_partial=True)
    assert store.get("set", file).digest == found
    assert len(store.unofficial) == 1 and found in store.unofficial[0]


def test_the_folder(monkeypatch, tmp_path, cache):
    monkeypatch.delenv("DIFFBOOK_DATA", raising=False)
    assert A.data_folder() == cache
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path / "there"))
    assert A.data_folder() == tmp_path / "there"
    assert A.data_folder(tmp_path / "given") == tmp_path / "given"
    assert issubclass(DataError, Refused)


# --- reading archives ----------------------------------------------------------------------

FILES = {"a/one.txt": b"1" * 3000, "a/b/two.txt": b"2", "three.bin": bytes(range(256)) * 40}


def test_tar_zip_and_folder_give_the_same_members(tmp_path):
    paths = [
        tar_of(tmp_path / "x.tar.gz", FILES),
        tar_of(tmp_path / "x.tar", FILES, "w"),
        tar_of(tmp_path / "dot.tar.gz", {"./" + name: data for name, data in FILES.items()}),
        zip_of(tmp_path / "x.zip", FILES),
        tmp_path / "folder",
    ]
    for name, content in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    for path in paths:
        assert everything(path) == FILES
        assert U.names(path) == sorted(FILES)
        assert dict(U.members(path, lambda name: name == "a/b/two.txt")) == {"a/b/two.txt": b"2"}


BAD_NAMES = ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil", "\\evil"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    files = {"good": b"1", name: b"2"}
    for path in (tar_of(tmp_path / "x.tar.gz", files), zip_of(tmp_path / "x.zip", files)):
        with pytest.raises(ArchiveError, match="leads outside"):
            dict(U.members(path, lambda name: name == "good"))
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ArchiveError, match="'link' is a link or a device"):
        everything(tmp_path / "x.tar.gz")


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="is a link"):
        everything(tmp_path / "x.zip")


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "gz"])
def test_cut_off_or_altered_archives_are_damaged(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    content = torch.randint(256, (3000,), generator=torch.Generator().manual_seed(0))
    files = {"a": bytes(content.tolist()), "b": b"text " * 500}
    if kind == "gz":
        path.write_bytes(gzip.compress(files["a"]))
    else:
        (zip_of if kind == "zip" else tar_of)(path, files)
    whole = path.read_bytes()
    read = U.gunzip if kind == "gz" else everything
    read(path)
    for cut in (0, 1, 20, 600, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=rf"x\.{kind} is damaged or cut off"):
            read(path)
    for at in (700, 1500, 2500):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(ArchiveError, match="is damaged"):
            read(path)


# --- pickles -------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", [Evil(), {"data": Evil()}, {"data": [Evil()]}])
def test_pickles_are_not_executed(content):
    with pytest.raises(ArchiveError, match=r"exec, which is not allowed"):
        plain_pickle(pickle.dumps(content, protocol=2), "x: data_batch_1")


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), b"cos\nsystem\n."])
def test_other_bytes_are_no_plain_pickle(content):
    with pytest.raises(ArchiveError, match="x: data_batch_1 is not a plain pickle"):
        plain_pickle(content, "x: data_batch_1")


# --- what is slow to decode ----------------------------------------------------------------


def test_decoded_tensors_are_built_once_and_again_when_damaged(cache):
    built = []

    def build():
        built.append(1)
        return {"examples": torch.arange(6, dtype=torch.uint8)}

    for _ in range(2):
        assert torch.equal(cached_tensors("examples/key", build)["examples"], torch.arange(6))
    assert len(built) == 1
    (file,) = (cache / "examples").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(UserWarning, match="damaged"):
        again = cached_tensors("examples/key", build)
    assert torch.equal(again["examples"], torch.arange(6)) and len(built) == 2


def test_an_unwritable_cache_is_no_obstacle(cache):
    cache.write_text("a file where the folder should be")
    tensors = {"examples": torch.ones(2)}
    with pytest.warns(UserWarning, match="not kept"):
        assert cached_tensors("examples/key", lambda: tensors) is tensors


def test_the_stamp_changes_with_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = A.stamp(tmp_path), A.stamp(tmp_path / "a")
    assert before == (A.stamp(tmp_path), A.stamp(tmp_path / "a"))
    (tmp_path / "a").write_bytes(b"22")
    assert A.stamp(tmp_path) != before[0] and A.stamp(tmp_path / "a") != before[1]
