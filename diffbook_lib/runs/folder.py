"""Run folders: `spec.json` decides whether a later start continues the run, `.lock` keeps others
out while one process works there."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from diffbook_lib import files, specs
from diffbook_lib.errors import Refused
from diffbook_lib.runs import presets
from diffbook_lib.specs import RunSpec

PATIENCE = (
    5.0  # seconds to wait for a folder: a killed run's kernel lives a moment longer
)
INHERITED = (
    "DIFFBOOK_LOCKED"  # names the folder that the process which started us has locked
)
_locks: dict[Path, TextIO] = {}  # held until this process ends


class SpecMismatch(Refused):
    """The run folder belongs to a run with other values."""


class FolderError(Refused):
    """A folder cannot be used for a run: damaged, or somebody else works there."""


def default_folder(spec: RunSpec) -> Path:
    """Where a run goes that was given no folder: runs/<method>-<preset>, and behind that, where
    it differs from the preset, a short hash of the difference."""
    preset = specs.make(spec.method, presets.read(spec.method, spec.preset))
    values, others = (one.model_dump(mode="json") for one in (spec, preset))
    changed = {name: values[name] for name in values if values[name] != others[name]}
    changed.pop("data_hash", None)  # the same run, which its changed data will stop
    text = json.dumps(changed, sort_keys=True)
    behind = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if changed else ""
    return presets.root() / "runs" / f"{spec.method}-{spec.preset}{behind}"


def check(folder: str | Path, spec: RunSpec) -> bool:
    """Whether `folder` already holds a run of this specification.

    Raises SpecMismatch if it holds another one and FolderError if that cannot be told.
    """
    folder = Path(folder)
    if not (folder / "spec.json").exists():
        if any(folder.glob("checkpoints/*")):
            raise FolderError(
                f"{folder} holds checkpoints but no spec.json, so nobody knows what they "
                "belong to; name another folder or remove this one"
            )
        return False
    old, new = read_spec(folder).model_dump(mode="json"), spec.model_dump(mode="json")
    names = [
        name for name in {**old, **new} if old.get(name, ...) != new.get(name, ...)
    ]
    if names:
        lines = [
            f"  {name}: {_show(old, name)} -> {_show(new, name)}" for name in names
        ]
        changed = (
            f"\nthe data in {spec.path} changed since"
            if names == ["data_hash"]
            else ""
        )
        raise SpecMismatch(
            f"{folder} holds a run with other values (there -> now):\n"
            + "\n".join(lines)
            + changed
            + "\ngive the new run its own folder (--out DIR; in a notebook: out), or remove the "
            "old one"
        )
    return True


def open_run(folder: str | Path, spec: RunSpec) -> Path:
    """Make or take up the run folder of this specification, and keep other processes out of it
    until this one ends; "" is the default folder.

    Raises SpecMismatch if it belongs to a run with other values, FolderError if another process
    works in it.
    """
    folder = Path(folder).resolve() if str(folder) else default_folder(spec)
    check(folder, spec)
    lock(folder)
    if not check(folder, spec):
        text = spec.model_dump_json(indent=1) + "\n"
        files.atomic_write(folder / "spec.json", text.encode())
    return folder


def read_spec(folder: str | Path) -> RunSpec:
    """The specification of a run folder. One that lacks a parameter of today has its default."""
    file = Path(folder) / "spec.json"
    if not file.exists():
        raise FolderError(f"{folder} is no run folder: it has no spec.json")
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        mapping = error
    if not isinstance(mapping, dict):
        raise FolderError(
            f"{file} is damaged ({mapping}); restore it, or remove {file.parent} to start anew"
        )
    return specs.make(str(mapping.get("method")), mapping)


def lock(folder: Path) -> None:
    """Keep other processes out of `folder`, made if need be, until this process ends.

    Nothing to do where this process or the one that started it has done so already; among the
    processes of torchrun the first locks for all. Raises FolderError that says who works there.
    """
    folder = folder.resolve()
    inherited = os.environ.get(INHERITED)
    if folder in _locks or (inherited and folder.is_relative_to(inherited)):
        return
    if os.environ.get("RANK", "0") != "0":
        return
    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / ".lock").open("a+")
    end = time.monotonic() + PATIENCE
    while not _locked(stream):
        if time.monotonic() > end:
            stream.seek(0)
            owner = stream.read() or "(unknown)"
            stream.close()
            raise FolderError(
                f"process {owner} works in {folder}; wait until it ends, or shut down its notebook"
            )
        time.sleep(0.1)
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    _locks[folder] = stream


def unlock(folder: Path) -> None:
    """Let others work in a folder that this process has locked."""
    if stream := _locks.pop(folder.resolve(), None):
        stream.close()


def handed_on(folder: Path) -> tuple[dict[str, str], tuple[int, ...]]:
    """Environment and file descriptors of a child process that is to work in `folder` under the
    lock of this one, which lasts as long as either lives."""
    holder = next(
        (held for held in _locks if folder.resolve().is_relative_to(held)), None
    )
    if holder is None:
        return {}, ()
    return {INHERITED: str(holder)}, (_locks[holder].fileno(),)


def _locked(stream: TextIO) -> bool:
    """Whether the lock was to be had; True as well where the system knows no locks."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def _show(mapping: Mapping[str, Any], name: str) -> str:
    return repr(mapping[name]) if name in mapping else "(absent)"
