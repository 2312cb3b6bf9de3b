"""The results table: records of our runs beside the figures that the papers report.

Records that the book quotes are kept under `results/<method>/`, published figures stand in
`results/published.yaml`.
"""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError

from diffbook_lib import files, specs
from diffbook_lib.runs import presets, records
from diffbook_lib.runs.origin import Model


class PublishedFigure(Model):
    """A figure from a paper, with the place it was read."""

    method: str
    figure: str
    value: str
    source: str = Field(description="publication and number of the table")
    tag: Literal["paper", "page", "code", "secondary"] = Field(
        description="read in the paper, on the authors' page, in their code, in a later paper"
    )

    def label(self) -> str:
        """The source with its tag."""
        return f"{self.source} [{self.tag}]"


def keep(folder: str | Path) -> Path:
    """Copy a run's record to results/<method>/<preset>.json, where the book finds it, and its
    picture of samples, if it has one, beside it.

    Raises RecordError if the run was not the preset as it stands now.
    """
    record = records.read_record(folder)
    spec = record.spec
    preset = presets.resolve(spec.method, spec.preset)
    changed = [
        f"  {name}: preset {getattr(preset, name)!r}, run {value!r}"
        for name, value in spec
        if getattr(preset, name) != value
    ]
    if changed:
        raise records.RecordError(
            f"{folder} is not a run of the preset {spec.preset} as it stands:\n"
            + "\n".join(changed)
        )
    file = _kept(spec.method, spec.preset)
    file.parent.mkdir(parents=True, exist_ok=True)
    records.save_record(record, file)
    picture = Path(folder).resolve() / "figures" / "samples.png"
    if picture != picture.resolve() or (picture.exists() and not picture.is_file()):
        raise records.RecordError(
            f"{picture} is a link, or no file; put the picture itself there, or remove it"
        )
    if picture.exists():
        files.atomic_write(file.with_suffix(".png"), picture.read_bytes())
    return file


def recorded(method: str, preset: str) -> records.Record:
    """The kept record of a preset, its members together; RecordError if there is none."""
    file = _kept(method, specs.check_name(preset))
    if not file.exists():
        raise records.RecordError(
            f"no run of {method} {preset} is kept in {file.parent}"
        )
    return records.read_record(file)


def _kept(method: str, preset: str) -> Path:
    return presets.root() / "results" / method / f"{preset}.json"


def published(method: str) -> list[PublishedFigure]:
    """The published figures of a method; RecordError if the list is not as it must be."""
    file = presets.root() / "results" / "published.yaml"
    if not file.exists():
        return []
    try:
        figures = [
            PublishedFigure.model_validate(entry)
            for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
        ]
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise records.RecordError(f"{file}: {error}") from None
    return [figure for figure in figures if figure.method == method]


class Row(NamedTuple):
    """One line of the results table; what does not apply is empty."""

    method: str
    ours: bool
    figure: str
    at: str
    value: str
    floor: str
    samples: str
    scale: str
    hardware: str
    source: str


def rows(method: str, local: bool = False) -> list[Row]:
    """Kept records of a method, then the published figures; with `local` also what lies in runs/.

    A published figure's source ends in its tag: where it was read.
    """
    home = presets.root()
    kept = sorted((home / "results" / method).glob("*.json"))
    found = {file: records.read_record(file) for file in kept}
    if local:
        found |= _local(method)[0]
    ours = [
        row
        for file, record in found.items()
        for row in _rows_of(record, str(file.relative_to(home)))
    ]
    theirs = [
        Row(
            method,
            False,
            entry.figure,
            "",
            entry.value,
            "",
            "",
            "",
            "",
            entry.label(),
        )
        for entry in published(method)
    ]
    return ours + theirs


def _local(method: str) -> tuple[dict[Path, records.Record], list[str]]:
    """The records of a method's runs in this checkout, and what is wrong with damaged ones."""
    found, damaged = {}, []
    for file in sorted((presets.root() / "runs").glob(f"{method}-*/record.json")):
        try:
            found[file] = records.read_record(file)
        except records.RecordError as error:
            damaged.append(f"not shown: {error}")
    return found, damaged


def _rows_of(record: records.Record, source: str) -> list[Row]:
    """One line a figure; the seeds of a sweep make one line together."""
    spec = record.spec
    scale = f"{spec.dataset}, {spec.steps} steps of {spec.batch}"
    hardware = f"{record.hardware}, {record.training_seconds:.0f} s of training"
    spread = {(s.name, _words(s.at)): s for s in record.spreads}
    seen, lines = set(), []
    for found in record.results:
        at = {name: value for name, value in found.at.items() if name != "seed"}
        key = found.name, _words(at)
        over = spread.get(key)
        if over and key in seen:
            continue
        seen.add(key)
        place = key[1] if over else _words(found.at)
        value = f"{over.mean:.4g} ± {over.std:.2g}" if over else f"{found.value:.4g}"
        floor = "" if found.floor is None else f"{found.floor:.4g}"
        count = f"{found.samples}" + (f", {over.seeds} seeds" if over else "")
        lines.append(
            Row(
                spec.method,
                True,
                found.name,
                place,
                value,
                floor,
                count,
                scale,
                hardware,
                source,
            )
        )
    return lines


def _words(at: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in at.items())


def table(method: str, local: bool = False, most: int | None = None) -> str:
    """Our runs with their figures, the best `most` of each, then the published figures: as text
    of at most 100 columns.

    The best of a figure are those nearest to what real examples give.
    """
    found = rows(method, local)
    ours = [_run(list(part), most) for part in _by(found, True, "source")]
    theirs = [
        f"  {row.figure}: {row.value} ({row.source})" for row in found if not row.ours
    ]
    parts = [
        f"{method}: recorded runs",
        *(ours or ["  none"]),
        f"{method}: published figures",
        "\n".join(theirs or ["  none"]),
        *(_local(method)[1] if local else []),
    ]
    lines = "\n\n".join(parts).splitlines()
    return "\n".join(_folded(line) for line in lines)


def _by(found: Iterable[Row], ours: bool, *names: str) -> Iterable[Iterable[Row]]:
    """Rows in groups of those that agree in these columns, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        if row.ours is ours:
            key = tuple(str(getattr(row, name)) for name in names)
            groups.setdefault(key, []).append(row)
    return groups.values()


def _run(found: list[Row], most: int | None) -> str:
    """One run: its source, scale and hardware, then each figure with its best values."""
    first = found[0]
    lines = [f"  {first.source}: {first.scale}", f"  {first.hardware}"]
    for part in _by(found, True, "figure", "floor", "samples"):
        group = sorted(part, key=_from_floor)
        real = f"; real examples {group[0].floor}" if group[0].floor else ""
        count, *seeds = group[0].samples.split(", ")
        said = ", ".join([f"{count} samples", *seeds])
        lines.append(f"    {group[0].figure} ({said}{real})")
        width = max(len(row.value) for row in group)
        lines += [f"      {row.value:<{width}}  {row.at}" for row in group[:most]]
        if most is not None and len(group) > most:
            lines.append(f"      and {len(group) - most} more (--all)")
    return "\n".join(lines)


def _from_floor(row: Row) -> float:
    """How far a figure is from that of real examples; 0 where that is not known."""
    return abs(float(row.value.split()[0]) - float(row.floor)) if row.floor else 0.0


def _folded(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return "\n".join(textwrap.wrap(line, 100, subsequent_indent=indent)) or line
