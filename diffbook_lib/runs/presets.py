"""Presets: flat YAML files `nbs/presets/<method>/<name>.yaml` with the values that differ from the
defaults of the method's specification.

A specification is the class's defaults, overlaid by the preset's file, overlaid by what the
command line, papermill or the notebook's parameters cell sets.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from diffbook_lib import specs
from diffbook_lib.specs import (
    RunSpec,
    SpecError,
    check_name,
    nearest,
    plain_yaml,
    shown,
)

EXECUTION = (
    "out",
    "processes",
)  # say where and how a run happens, not what it computes
SCALARS = (int, float, str, bool, type(None))
SEEN = "_parameters"  # in a notebook: the names its parameters cell had set at the first call


def root() -> Path:
    """The repository: DIFFBOOK_ROOT, else the checkout this library or this folder lies in."""
    if chosen := os.environ.get("DIFFBOOK_ROOT"):
        if (Path(chosen) / "nbs" / "presets").is_dir():
            return Path(chosen).resolve()
        raise SpecError(
            f"DIFFBOOK_ROOT is {chosen}, but there is no folder nbs/presets in it; name a "
            "checkout of the book, or leave the variable out"
        )
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "nbs" / "presets").is_dir():
            return folder
    raise SpecError(
        "no folder nbs/presets beside the library or above this folder; run inside a "
        "checkout of the book or name it in DIFFBOOK_ROOT"
    )


def notebook_path(method: str) -> Path:
    """The run notebook of a method; SpecError if there is none."""
    specs.find(method)
    file = root() / "nbs" / f"{method}.ipynb"
    if not file.is_file():
        raise SpecError(f"{file} is missing: {method} has no run notebook here")
    return file


def names(method: str) -> list[str]:
    """The names of a method's presets."""
    specs.find(method)
    return sorted(
        path.stem for path in (root() / "nbs" / "presets" / method).glob("*.yaml")
    )


def path(method: str, name: str) -> Path:
    """The file of a preset; SpecError with the nearest match if there is none."""
    check_name(name)
    if name not in (known := names(method)):
        raise SpecError(
            f"unknown preset {name!r} of {method}; presets: {', '.join(known) or 'none'}"
            f"{nearest(name, known)}"
        )
    return root() / "nbs" / "presets" / method / f"{name}.yaml"


def read(method: str, name: str) -> dict[str, Any]:
    """The parameters that a preset sets, as they stand in its file."""
    file = path(method, name)
    try:
        mapping = plain_yaml(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SpecError(f"{file} is not plain YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise SpecError(
            f"{file} must hold lines 'parameter: value', not {shown(mapping)}"
        )
    if mapping.get("preset") != name:
        raise SpecError(
            f"{file} says preset: {shown(mapping.get('preset'))}; it must repeat its own name, "
            f"preset: {name}, so that the notebook knows it under plain papermill too"
        )
    return mapping


def summary(method: str, name: str) -> str:
    """The first comment line of a preset's file."""
    lines = path(method, name).read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def resolve(
    method: str, name: str, changes: Mapping[str, Any] | None = None
) -> RunSpec:
    """The specification of a preset with some values changed, its data set known and, if it is
    your own, fingerprinted.

    Raises SpecError for an unknown method, preset or parameter and for a value that is not
    allowed, data.DataError for data that cannot be used so.
    """
    from diffbook_lib import data  # here, so that listing presets needs no torch

    changes = dict(changes or {})
    if changes.get("preset", name) != name:
        raise SpecError(
            f"preset is {changes['preset']!r}; it names the preset, here {name!r}"
        )
    for word in EXECUTION:
        if word in changes:
            raise SpecError(
                f"{word} is no parameter of the run; use the option --{word}"
            )
    spec = specs.make(method, {**read(method, name), **changes})
    for at in spec.members():
        data.check(spec.member(at))
    if spec.path:
        place = str(Path(spec.path).expanduser().resolve())
        spec = spec.model_copy(
            update={"path": place, "data_hash": data.fingerprint(spec)}
        )
    return spec


def collect(method: str, namespace: dict[str, Any]) -> RunSpec:
    """The specification from the globals of a notebook whose parameters cell has been executed.

    Every public global with a plain value, as YAML knows them, counts as a parameter, so that one
    which papermill was given under a wrong name stops the run. Modules, functions, lists of
    objects and the execution parameters `out` and `processes` are passed over. When the cell is
    executed again in the same kernel, other globals than at the first time count only where they
    are parameters or are named nearly so.
    """
    ignored = {*EXECUTION, "In", "Out"}
    given = {
        name: value
        for name, value in namespace.items()
        if name not in ignored and name[0] != "_" and _is_plain(value)
    }
    first = namespace.setdefault(SEEN, frozenset(given))
    fields = specs.find(method).model_fields
    given = {
        name: value
        for name, value in given.items()
        if name in first or name in fields or nearest(name, fields)
    }
    if "preset" not in given:
        raise SpecError(
            "the parameters cell sets no preset; write for example preset = 'smoke'"
        )
    return resolve(method, str(given.pop("preset")), given)


def _is_plain(value: Any) -> bool:
    """Whether a value is such as YAML knows: a scalar, or a list or mapping of such values."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return isinstance(value, SCALARS)
