"""What every run has: data, optimiser, averages, sampling and bookkeeping."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from diffbook_lib.specs.explain import check_name, explain, nearest


def _profile(text: str) -> str:
    """The name of an average, in one form; ValueError for what is none."""
    from diffbook_lib import ema  # here, so that listing presets needs no torch

    name: str = ema.profile(text).name
    return name


Name = Annotated[str, AfterValidator(check_name)]
Count = Annotated[int, Field(ge=1)]
# YAML and JSON know lists; the frozen spec holds tuples
Counts = Annotated[tuple[Count, ...], Field(strict=False)]
Profile = Annotated[str, AfterValidator(_profile)]
Choice = Annotated[str, AfterValidator(lambda text: text and _profile(text))]
Values = Annotated[
    tuple[int | float | str | bool | None, ...], Field(strict=False, min_length=1)
]
Grid = dict[str, Values]
MOST_MEMBERS = 1000


class RunSpec(BaseModel):
    """Every value that decides what a run computes, checked before it starts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    coordinates: ClassVar[
        tuple[str, ...]
    ] = ()  # fields that tell the cells of `table` apart

    method: Name = Field(description="name of the method: chapter, notebook, module")
    preset: Name = Field(description="name of the preset the run started from")
    seed: int = Field(
        0, ge=0, description="key of every random number of the training"
    )
    noise_seed: int = Field(
        0,
        ge=0,
        description="key of the noise of samples: image i starts alike in all methods",
    )
    dataset: str = Field(
        description="name given to data.load; 'folder' for your own data"
    )
    path: str = Field(
        "", description="folder, archive or array file of your own data"
    )
    data_hash: str = Field(
        "", description="SHA-256 of your own data, found at the start"
    )
    allow_partial: bool = Field(
        False, description="accept files that are only a part of the published data"
    )
    steps: Count = Field(description="optimiser steps")
    batch: Count = Field(description="examples a step, over all processes")
    accumulate: Count = Field(1, description="micro-batches a step in each process")
    lr: float = Field(gt=0, description="highest learning rate")
    lr_end: float = Field(
        0.0, ge=0, description="cosine, linear: learning rate at the end"
    )
    schedule: Literal["constant", "cosine", "inverse-sqrt", "linear"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    warmup_images: int = Field(
        0, ge=0, description="the same, counted in examples seen"
    )
    reference_steps: int = Field(
        0,
        ge=0,
        description="inverse-sqrt: step at which the fall begins; 0: end of warm-up",
    )
    adam_beta1: float = Field(
        0.9, ge=0, lt=1, description="Adam, decay of the first moment"
    )
    adam_beta2: float = Field(
        0.999, ge=0, lt=1, description="Adam, decay of the second"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled weight decay (AdamW)"
    )
    clip: float = Field(
        1.0, ge=0, description="largest gradient norm; 0 does not clip"
    )
    ema: Annotated[tuple[Profile, ...], Field(strict=False, min_length=1)] = Field(
        ("classic-0.999",),
        description="averages of the weights, the first for samples: classic-DECAY, "
        "power-SIGMA_REL, halflife-IMAGES or halflife-IMAGES-ramp-RATIO",
    )
    snapshot_every: int = Field(
        0, ge=0, description="steps between kept snapshots of the averages; 0: none"
    )
    snapshot_precision: Literal["fp32", "fp16"] = Field(
        "fp16", description="arithmetic in which snapshots are kept"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of the network"
    )
    checkpoint_every: Count = Field(1000, description="steps between checkpoints")
    log_every: Count = Field(50, description="steps between logged metrics")
    samples: Count = Field(2000, description="samples drawn for the figures of merit")
    sample_batch: Count = Field(100, description="samples drawn at once")
    table: Annotated[Grid, Field(strict=False)] = Field(
        {},
        description="further ways of sampling: lists of values, all with one another",
    )
    sweep: Annotated[Grid, Field(strict=False)] = Field(
        {}, description="members of the run: lists of values, all with one another"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch is {self.batch}, which accumulate = {self.accumulate} does not divide"
            )
        if self.warmup_steps and self.warmup_images:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and warmup_images {self.warmup_images}; "
                "set one of them"
            )
        if len(set(self.ema)) < len(self.ema):
            raise ValueError(f"ema names an average twice: {', '.join(self.ema)}")
        return self

    @model_validator(mode="after")
    def _grids_hold_what_is_allowed(self) -> Self:
        for what, grid, allowed in (
            ("table", self.table, set(self.coordinates)),
            ("sweep", self.sweep, type(self)._sweepable()),
        ):
            if unknown := sorted(set(grid) - allowed):
                raise ValueError(
                    f"{what} names {', '.join(unknown)}; it may name "
                    f"{', '.join(sorted(allowed))}{nearest(unknown[0], allowed)}"
                )
            for values in grid.values():
                if len(set(values)) < len(values):
                    raise ValueError(f"{what} holds a value twice: {values}")
            for at in combinations(grid):
                self._with(what, at)
        return self

    @classmethod
    def _sweepable(cls) -> set[str]:
        """The parameters a sweep may name: those that hold one value."""
        kinds = {
            name: get_origin(field.annotation)
            for name, field in cls.model_fields.items()
        }
        return {
            name for name, kind in kinds.items() if kind not in (tuple, dict)
        } - NEVER_SWEPT

    def _with(self, what: str, at: Mapping[str, Any]) -> None:
        """Raise ValueError unless these values are allowed together."""
        try:
            type(self)(**{**dict(self), "sweep": {}, what: {}, **at})
        except ValidationError as error:
            problems = "; ".join(explain(type(self), dict(p)) for p in error.errors())
            raise ValueError(f"{what}: {problems}") from None

    def cells(self) -> list[dict[str, Any]]:
        """Ways of sampling as coordinates: first the run's own, then those of `table`."""
        own = {name: getattr(self, name) for name in self.coordinates}
        return [own] + [
            at for c in combinations(self.table) if (at := {**own, **c}) != own
        ]

    def calls(self) -> int:
        """Network calls for one image of every cell, for the estimate of cost."""
        return sum(int(at.get("nfe") or 1) for at in self.cells())

    def members(self) -> list[dict[str, Any]]:
        """The coordinates of the members of the sweep; one, without any, if there is none."""
        return list(combinations(self.sweep)) if self.sweep else [{}]

    def member(self, at: Mapping[str, Any]) -> Self:
        """The specification of one member, a run of its own."""
        return type(self)(**{**dict(self), **at, "sweep": {}})

    def arguments(self, cls: type) -> dict[str, Any]:
        """Those fields of a dataclass, such as a method's process, that are parameters here."""
        names = (field.name for field in dataclasses.fields(cls))
        return {
            name: getattr(self, name)
            for name in names
            if name in type(self).model_fields
        }

    def _repr_markdown_(self) -> str:
        rows = [
            f"| `{name}` | {_shown(value)} | {field.description} |"
            for name, field in type(self).model_fields.items()
            for value in [getattr(self, name)]
        ]
        return "\n".join(
            ["| parameter | value | meaning |", "| :- | :- | :- |", *rows]
        )


NEVER_SWEPT = {"method", "preset", "data_hash"}


def combinations(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value a name; none from an empty grid."""
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MOST_MEMBERS:
        raise ValueError(
            f"{count} combinations of {dict(grid)}; at most {MOST_MEMBERS} make sense"
        )
    if grid:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _shown(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(
            f"{name}: {_shown(values)}" for name, values in value.items()
        )
    return str(value).replace("|", "\\|")
