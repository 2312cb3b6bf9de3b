"""The results table: records of our runs beside the figures that the papers report.

Records that the book quotes are kept under `results/<method>/`, published figures stand in
`results/published.yaml`.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError

from diffbook_lib import checkpoint, presets, records


class Published(records.Model):
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
    picture of samples, if it has one, beside it. A run with another seed than the preset's is
    kept under <preset>-seed<number>.

    Raises RecordError if the run was not the preset as it stands now.
    """
    record = records.read_record(folder)
    spec = record.spec
    preset = presets.resolve(spec.method, spec.preset)
    changed = [
        f"  {name}: preset {getattr(preset, name)!r}, run {value!r}"
        for name, value in spec
        if getattr(preset, name) != value and name != "seed"
    ]
    if changed:
        raise records.RecordError(
            f"{folder} is not a run of the preset {spec.preset} as it stands:\n"
            + "\n".join(changed)
        )
    name = spec.preset if spec.seed == preset.seed else f"{spec.preset}-seed{spec.seed}"
    file = presets.root() / "results" / spec.method / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic_write(file, (record.model_dump_json(indent=1) + "\n").encode())
    picture = Path(folder) / "figures" / "samples.png"
    if picture.exists():
        checkpoint.atomic_write(file.with_suffix(".png"), picture.read_bytes())
    return file


def recorded(method: str, preset: str) -> list[records.Record]:
    """The kept records of a preset, one a seed, by seed; RecordError if there is none."""
    files = (presets.root() / "results" / method).glob("*.json")
    found = [record for record in map(records.read_record, files) if record.spec.preset == preset]
    if not found:
        raise records.RecordError(f"no run of {method} {preset} is kept in results/{method}")
    return sorted(found, key=lambda record: record.spec.seed)


def published(method: str) -> list[Published]:
    """The published figures of a method; RecordError if the list is not as it must be."""
    file = presets.root() / "results" / "published.yaml"
    if not file.exists():
        return []
    try:
        figures = [Published.model_validate(entry) for entry in yaml.safe_load(file.read_text())]
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise records.RecordError(f"{file}: {error}") from None
    return [figure for figure in figures if figure.method == method]


class Row(NamedTuple):
    """One line of the results table; what does not apply is empty."""

    method: str
    ours: bool
    figure: str
    value: str
    floor: str
    samples: str
    seed: str
    scale: str
    hardware: str
    source: str


def rows(method: str, local: bool = False) -> list[Row]:
    """Kept records of a method, then the published figures; with `local` also what lies in runs/.

    A published figure's source ends in its tag: where it was read.
    """
    home = presets.root()
    files = sorted((home / "results" / method).glob("*.json"))
    if local:
        files += sorted((home / "runs").glob(f"{method}-*/record.json"))
    ours = [row for file in files for row in _rows_of(file, str(file.relative_to(home)))]
    theirs = [
        Row(method, False, entry.figure, entry.value, "", "", "", "", "", entry.label())
        for entry in published(method)
    ]
    return ours + theirs


def _rows_of(file: Path, source: str) -> list[Row]:
    record = records.read_record(file)
    spec = record.spec
    scale = f"{spec.dataset}, {spec.steps} steps of {spec.batch}"
    hardware = f"{record.hardware}, {record.seconds:.0f} s"

    def show(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    return [
        Row(
            spec.method,
            True,
            metric.name,
            show(metric.value),
            show(metric.floor),
            show(metric.samples),
            show(metric.seed),
            scale,
            hardware,
            source,
        )
        for metric in record.results
    ]


def table(method: str, local: bool = False) -> str:
    """The results table as text: our runs with their scale, then the published figures."""
    found = rows(method, local)
    parts = []
    for ours, title in ((True, "recorded runs"), (False, "published figures")):
        chosen = [row for row in found if row.ours is ours]
        text = _aligned(chosen) if chosen else "  none"
        parts.append(f"{method}: {title}\n{text}")
    return "\n\n".join(parts)


def _aligned(chosen: list[Row]) -> str:
    """The columns that any of the rows fills, under their names."""
    names = [name for name in Row._fields[2:] if any(getattr(row, name) for row in chosen)]
    lines = [names, *([getattr(row, name) for name in names] for row in chosen)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
