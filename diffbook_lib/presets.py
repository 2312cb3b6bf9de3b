"""Specifications of runs: every value that decides what a run computes, checked before it starts.

A preset is a flat YAML file `nbs/presets/<method>/<name>.yaml` with the values that differ from
the defaults in the parameters cell of `nbs/<method>.ipynb`. `spec` turns such a mapping into the
method's frozen `RunSpec`; `collect` does the same for the globals of a running notebook.
"""

import ast
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

EXECUTION = ("out", "processes")  # say where and how a run happens, not what it computes
PLAIN = (int, float, str, bool, list, tuple, dict, type(None))


class PresetError(ValueError):
    """A method, preset or parameter that does not exist, or a value that is not allowed."""


def check_name(name: str) -> str:
    """`name`, if it can serve as a file name inside its folder; PresetError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or ".." in name:
        raise PresetError(
            f"the name {name!r} is refused: a run or preset name consists of letters, digits, "
            "'.', '_' and '-', without '/' and '..'"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
Count = Annotated[int, Field(ge=1)]
# YAML and JSON know lists; the frozen spec holds tuples
Counts = Annotated[tuple[Count, ...], Field(strict=False)]


class RunSpec(BaseModel):
    """What every method's run has in common: data, optimiser, averaging and bookkeeping."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: Name = Field(description="name of the method: chapter, notebook, module")
    preset: Name = Field(description="name of the preset the run started from")
    seed: int = Field(0, ge=0, description="key of every random number of the run")
    dataset: str = Field(description="name given to data.load")
    allow_partial: bool = Field(
        False, description="accept files that are only a part of the published data"
    )
    flip: bool = Field(False, description="mirror training images left-right at random")
    dequantise: bool = Field(False, description="spread levels over their bins for training")
    steps: Count = Field(description="optimiser steps")
    batch: Count = Field(description="samples a step, over all processes")
    accumulate: Count = Field(1, description="micro batches a step in each process")
    lr: float = Field(gt=0, description="highest learning rate")
    schedule: Literal["constant", "cosine", "inverse-sqrt"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    reference_steps: int = Field(
        0, ge=0, description="inverse-sqrt: step at which the fall begins; 0: end of the warm-up"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Adam, decay of the first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Adam, decay of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    ema: Literal["classic", "power"] = Field("classic", description="rule of weight averaging")
    ema_value: float = Field(
        0.999, ge=0, lt=1, description="decay ('classic') or relative width sigma_rel ('power')"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the network")
    checkpoint_every: Count = Field(1000, description="steps between checkpoints")
    log_every: Count = Field(50, description="steps between logged metrics")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch is {self.batch}, which accumulate = {self.accumulate} does not divide"
            )
        if self.ema == "power" and not 0 < self.ema_value < 12**-0.5:
            raise ValueError(
                f"ema_value is {self.ema_value}; with ema = 'power' it is the relative width "
                "sigma_rel and must lie between 0 and 0.288, for example 0.1"
            )
        return self


Grid = Literal["linear", "quadratic"]


class CLDSpec(RunSpec):
    """A run of critically-damped Langevin diffusion (Dockhorn et al., ICLR 2022)."""

    sde: Literal["cld", "vpsde"] = Field("cld", description="with or without a velocity")
    M: float = Field(0.25, gt=0, description="mass of the velocity")
    beta0: float = Field(4.0, gt=0, description="beta(t) = beta0 + beta1 t, constant part")
    beta1: float = Field(0.0, ge=0, description="beta(t) = beta0 + beta1 t, slope")
    gamma: float = Field(
        0.04, gt=0, le=1, description="initial over stationary variance of the velocity"
    )
    eps_num: float = Field(1e-6, ge=0, description="added to the kernel's two variances")
    loss_eps: float = Field(1e-5, gt=0, lt=1, description="smallest time of the loss")
    objective: Literal["hsm", "dsm"] = Field(
        "hsm", description="hybrid or plain denoising score matching"
    )
    weighting: Literal["likelihood", "reweightedv1", "reweightedv2"] = Field(
        "reweightedv2", description="of the times in the loss"
    )
    mixed_score: bool = Field(description="learn the departure from the Gaussian velocity score")
    network: Literal["mlp", "plain-mlp", "unet", "ncsnpp"] = Field(
        description="mlp or plain-mlp for vectors, unet or ncsnpp for images"
    )
    width: Count = Field(64, description="mlp: units of a layer")
    depth: Count = Field(3, description="mlp: residual blocks; plain-mlp: hidden layers")
    channels: Count = Field(16, description="unet, ncsnpp: channels at full resolution")
    multipliers: Counts = Field(
        (1, 2), min_length=1, description="unet, ncsnpp: channels of each level, over channels"
    )
    blocks: Count = Field(1, description="unet, ncsnpp: residual blocks a level")
    attention: Counts = Field((4,), description="unet, ncsnpp: resolutions with self-attention")
    dropout: float = Field(0.0, ge=0, lt=1, description="unet, ncsnpp: dropout probability")
    fir: bool = Field(False, description="ncsnpp: resampling with a smoothing filter")
    progressive_input: bool = Field(False, description="ncsnpp: a second path from the input")
    time_embedding: Literal["fourier", "positional"] = Field(
        "fourier", description="ncsnpp: of the logarithm of t, or of t"
    )
    sampler: Literal["em", "sscs", "sscs2", "ode"] = Field("sscs", description="of the samples")
    grid: Grid = Field("quadratic", description="sampling times")
    nfe: int = Field(100, ge=2, description="times in the grid, the paper's count of calls")
    data_var: float = Field(0.005, ge=0, description="sscs2: variance of its reference Gaussian")
    samples: Count = Field(2000, description="samples drawn for the figures of merit")
    eps: float = Field(1e-3, gt=0, lt=1, description="time at which sampling stops")
    table_samplers: Annotated[tuple[Literal["em", "sscs", "sscs2"], ...], Field(strict=False)] = (
        Field((), description="samplers of the table")
    )
    table_grids: Annotated[tuple[Grid, ...], Field(strict=False)] = Field(
        (), description="grids of the table"
    )
    table_nfes: Counts = Field((), description="counts of the table")
    bound_images: int = Field(0, ge=0, description="held-out images for the likelihood bound")

    @model_validator(mode="after")
    def _vpsde_has_one_sampler(self) -> Self:
        named = {self.sampler, *self.table_samplers}
        if self.sde == "vpsde" and (named != {"em"} or self.bound_images):
            raise ValueError(
                f"sde = 'vpsde' is sampled by 'em' alone and has no velocity bound, but sampler "
                f"and table_samplers name {sorted(named)}, bound_images is {self.bound_images}"
            )
        return self


SPECS: dict[str, type[RunSpec]] = {"cld": CLDSpec}


def root() -> Path:
    """The repository: DIFFBOOK_ROOT, else the checkout this library or this folder lies in."""
    if chosen := os.environ.get("DIFFBOOK_ROOT"):
        return Path(chosen).resolve()
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "nbs" / "presets").is_dir():
            return folder
    raise PresetError(
        "no folder nbs/presets beside the library or above this folder; run inside a checkout of "
        "the book or name it in DIFFBOOK_ROOT"
    )


def notebook_path(method: str) -> Path:
    """The run notebook of a method; PresetError if there is none."""
    spec_class(method)
    file = root() / "nbs" / f"{method}.ipynb"
    if not file.is_file():
        raise PresetError(f"{file} is missing: {method} has no run notebook here")
    return file


def nearest(name: str, allowed: Iterable[str]) -> str:
    """'; did you mean …?' if a name of `allowed` resembles `name`, else nothing."""
    folded = {candidate.lower(): candidate for candidate in allowed}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def spec_class(method: str) -> type[RunSpec]:
    """The specification class of a method; PresetError with the nearest match if unknown."""
    if method not in SPECS:
        raise PresetError(
            f"unknown method {method!r}; methods: {', '.join(SPECS)}{nearest(method, SPECS)}"
        )
    return SPECS[method]


def names(method: str) -> list[str]:
    """The names of a method's presets."""
    spec_class(method)
    return sorted(path.stem for path in (root() / "nbs" / "presets" / method).glob("*.yaml"))


def path(method: str, name: str) -> Path:
    """The file of a preset; PresetError with the nearest match if there is none."""
    check_name(name)
    if name not in (known := names(method)):
        raise PresetError(
            f"unknown preset {name!r} of {method}; presets: {', '.join(known) or 'none'}"
            f"{nearest(name, known)}"
        )
    return root() / "nbs" / "presets" / method / f"{name}.yaml"


def read(method: str, name: str) -> dict[str, Any]:
    """The parameters that a preset sets, as they stand in its file."""
    file = path(method, name)
    try:
        mapping = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise PresetError(f"{file} is not plain YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise PresetError(f"{file} must hold lines 'parameter: value', not {mapping!r}")
    if mapping.get("preset") != name:
        raise PresetError(
            f"{file} says preset: {mapping.get('preset')!r}; it must repeat its own name, "
            f"preset: {name}, so that the notebook knows it under plain papermill too"
        )
    return mapping


def summary(method: str, name: str) -> str:
    """The first comment line of a preset's file."""
    lines = path(method, name).read_text().splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def spec(method: str, mapping: Mapping[str, Any]) -> RunSpec:
    """The checked specification with these values and the class's defaults for the rest.

    Raises PresetError that names every unknown parameter and every value that is not allowed.
    """
    cls = spec_class(method)
    if mapping.get("method", method) != method:
        raise PresetError(f"method is {mapping['method']!r} in a specification of {method!r}")
    try:
        return cls(**{**mapping, "method": method})
    except ValidationError as error:
        lines = [_explain(cls, dict(problem)) for problem in error.errors()]
        raise PresetError("\n".join(lines)) from None


def collect(method: str, namespace: Mapping[str, Any]) -> RunSpec:
    """The specification from the globals of a notebook, called before it defines any others.

    Every public global with a plain value counts as a parameter, so that one which papermill was
    given under a wrong name stops the run. Modules, functions, classes and the execution
    parameters `out` and `processes` are passed over.
    """
    ignored = {*EXECUTION, "In", "Out"}
    return spec(
        method,
        {
            name: value
            for name, value in namespace.items()
            if name not in ignored and not name.startswith("_") and isinstance(value, PLAIN)
        },
    )


def tagged_cells(notebook: Path, tag: str) -> list[str]:
    """The source of each code cell of a notebook that carries `tag`, read as plain JSON."""
    cells = json.loads(notebook.read_text())["cells"]
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])
    ]


def build(spec: RunSpec, tag: str = "build") -> dict[str, Any]:
    """What the cells of the method's run notebook that carry `tag` define for a specification.

    They are the repository's own code, executed here; they find the specification as `spec`.
    """
    notebook = notebook_path(spec.method)
    cells = tagged_cells(notebook, tag)
    if not cells:
        raise PresetError(f"{notebook} has no cell tagged {tag!r}")
    namespace: dict[str, Any] = {"__name__": f"nbs.{spec.method}", "spec": spec}
    for number, source in enumerate(cells, 1):
        exec(compile(source, f"{notebook.name}, {tag} cell {number}", "exec"), namespace)
    return namespace


def defaults(notebook: Path) -> dict[str, Any]:
    """The names and values of a notebook's parameters cell, read without executing it."""
    found: dict[str, Any] = {}
    for source in tagged_cells(notebook, "parameters"):
        for node in ast.parse(source).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found[name] = _literal(notebook, name, value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    found[name] = _literal(notebook, name, value)
    if not found:
        raise PresetError(f"{notebook} has no cell tagged 'parameters' that sets any")
    return found


def _literal(notebook: Path, name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise PresetError(
            f"{notebook}: parameter {name} is {ast.unparse(value)!r}; it must be a plain value"
        ) from None


def check_parameters(notebook: Path, mapping: Mapping[str, Any]) -> None:
    """Raise PresetError unless the notebook's parameters cell knows every name of `mapping`."""
    known = defaults(notebook)
    unknown = [name for name in mapping if name not in known]
    if unknown:
        raise PresetError(
            "\n".join(f"unknown parameter {name!r}{nearest(name, known)}" for name in unknown)
            + f"\nparameters of {notebook.name}: {', '.join(known)}"
        )


def resolve(method: str, name: str, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """The specification of a preset: the notebook's defaults, the preset's file, the overrides."""
    notebook = notebook_path(method)
    changes = {**read(method, name), **(overrides or {})}
    check_parameters(notebook, changes)
    values = {**defaults(notebook), **changes}
    return spec(method, {name: values[name] for name in values if name not in EXECUTION})


def _explain(cls: type[RunSpec], problem: dict[str, Any]) -> str:
    """One line about one validation error: name, value, what is allowed, nearest match."""
    where, kind, value = problem["loc"], problem["type"], problem["input"]
    if not where:
        return str(problem["ctx"]["error"])
    name = str(where[0])
    if kind == "extra_forbidden":
        return f"unknown parameter {name!r} (value {value!r}){nearest(name, cls.model_fields)}"
    meaning = cls.model_fields[name].description
    if kind == "missing":
        return f"{name} is missing ({meaning})"
    if kind == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    label = name + "".join(f"[{index}]" for index in where[1:])
    allowed = re.sub("^(Input|Tuple|List) should ", "it must ", problem["msg"])
    allowed = allowed.replace("valid tuple", "list").removesuffix(" after validation, not 0")
    hint = _number_hint(value)
    if kind == "literal_error":
        hint = nearest(value, get_args(cls.model_fields[name].annotation))
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"; write {value:.0f}"
    return f"{label} is {value!r} ({meaning}): {allowed}{hint}"


def _number_hint(value: Any) -> str:
    """How to write a number that arrived as text, as '1e-3' does from YAML."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if match := re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)", value.strip()):
        whole, fraction, sign, exponent = match.groups()
        plain = f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"
        whole_number = f" or {number:.0f}" if number.is_integer() else ""
        return f"; this is text: YAML reads {value} so, write {plain}{whole_number}"
    return f"; this is text: write {value.strip()} without quotes"
