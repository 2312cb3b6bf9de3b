"""Constrained diffusion by dual training (Khalafi, Ding and Ribeiro, NeurIPS 2024)."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffbook_lib.specs.parts import Pictures, PointNet, UNet

Class = Annotated[int, Field(ge=0)]
Classes = Annotated[tuple[Class, ...], Field(strict=False)]
Thresholds = Annotated[tuple[float, ...], Field(strict=False)]


class Spec(Pictures, PointNet, UNet):
    """A run of dual training, or of what a practitioner would do in its place."""

    coordinates: ClassVar[tuple[str, ...]] = ("sampler", "sampling_steps")

    training: Literal["plain", "oversampling", "penalty", "dual"] = Field(
        "dual",
        description="plain; classes repeated until they are equal; fixed multipliers; dual",
    )
    attribute: str = Field(
        "", description="celeba: what its two classes tell apart; empty: Male"
    )
    classes: Classes = Field((), description="classes that are learned; empty: all")
    minority: Classes = Field(
        (), description="under-represented classes, a constraint each"
    )
    per_class: int = Field(
        0, ge=0, description="examples of each class that are kept; 0: all"
    )
    per_minority: int = Field(
        0, ge=0, description="the same of each under-represented class"
    )
    pretrained: str = Field(
        "", description="run folder of a network to start from and to stay close to"
    )
    remembered: int = Field(
        1000, ge=1, description="pretrained: its samples that stand for what it knows"
    )
    constraint_batch: int = Field(
        16, ge=1, description="examples of each constraint in a batch"
    )
    weighting: Literal["nats", "simple"] = Field(
        "simple",
        description="thresholds on the KL divergence in nats, or on the plain loss",
    )
    thresholds: Thresholds = Field(
        (0.0,), description="bound of each constraint, or one for all"
    )
    reference: str = Field(
        "", description="nats: run folder of a network that learned class by class"
    )
    penalty: float = Field(
        0.0, ge=0, description="penalty: the fixed multiplier of every constraint"
    )
    primal_steps: int = Field(2, ge=1, description="optimiser steps for a dual step")
    eta: float = Field(0.05, gt=0, description="step size of the multipliers")
    dual_follows_lr: bool = Field(
        False, description="the dual step rises and falls with the learning rate"
    )
    dual_start: float = Field(0.0, ge=0, description="multipliers at the start")
    dual_warmup: int = Field(
        0, ge=0, description="optimiser steps before the first dual step"
    )
    memory: float = Field(
        0.0, ge=0, lt=1, description="what a running mean of violations keeps a step"
    )
    gain: float = Field(
        0.0, ge=0, description="PI controller: weight of the change of a violation"
    )
    cap: float = Field(100.0, gt=0, description="largest multiplier")
    alpha: float = Field(
        0.0, ge=0, description="alpha of the resilient rule; larger is softer"
    )
    finish: int = Field(
        0, ge=0, description="last steps, with the average of the multipliers"
    )
    conditional: bool = Field(
        False,
        description="plain, oversampling: learn and draw by class label, as references do",
    )
    network: Literal["mlp", "unet"] = Field(
        "unet", description="mlp for points, unet for images"
    )
    predicts: Literal["clean", "noise"] = Field(
        "clean",
        description="what the network predicts: EDM's preconditioning, or DDPM's noise",
    )
    schedule_of_noise: Literal["log-snr", "ddpm"] = Field(
        "log-snr",
        description="training levels: uniform in the log-SNR, or DDPM's 1000",
    )
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    sigma_min: float = Field(0.02, gt=0, description="lowest noise level")
    sigma_max: float = Field(20.0, gt=0, description="highest noise level")
    rho: float = Field(
        7.0, gt=0, description="sampling levels are even in sigma^(1/rho)"
    )
    sampler: Literal["ddim", "heun"] = Field(
        "ddim", description="order 1, or 2 with two calls a step"
    )
    sampling_steps: int = Field(50, ge=2, description="steps of the sampler")
    violation_draws: int = Field(
        2000, ge=2, description="noisy examples on which a violation is measured"
    )

    @model_validator(mode="after")
    def _has_what_it_constrains(self) -> Self:
        if self.minority and self.pretrained:
            raise ValueError(
                f"minority is {self.minority} and pretrained {self.pretrained!r}; set one of them"
            )
        if self.training in ("dual", "penalty") and not self.constraints:
            raise ValueError(
                f"training = {self.training!r} needs a constraint: set minority or pretrained"
            )
        if len(set(self.minority)) < len(self.minority):
            raise ValueError(f"minority names a class twice: {self.minority}")
        if len(self.thresholds) not in (1, len(self.constraints) or 1):
            raise ValueError(
                f"there are {len(self.thresholds)} thresholds for the constraints "
                f"{', '.join(self.constraints) or '(none)'}; give one for all or one for each"
            )
        without = self.training in ("plain", "oversampling") and not self.pretrained
        if self.conditional and not without:
            raise ValueError(
                "conditional = True is for training = 'plain' or 'oversampling' without "
                f"pretrained; training is {self.training!r}, pretrained {self.pretrained!r}"
            )
        rows = self.constraint_batch * len(self.constraints)
        if self.training in ("dual", "penalty") and rows >= self.batch:
            raise ValueError(
                f"batch is {self.batch}, of which the constraints take {rows}; leave some for "
                "the objective: raise batch or lower constraint_batch"
            )
        return self

    @model_validator(mode="after")
    def _thresholds_mean_something(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}"
            )
        if self.weighting == "simple" or not self.constraints:
            return self
        if self.schedule_of_noise != "log-snr":
            raise ValueError(
                "weighting = 'nats' needs levels that are uniform in the log-SNR; set "
                "schedule_of_noise = 'log-snr'"
            )
        if not (self.reference or self.pretrained or self.dataset == "corners"):
            raise ValueError(
                "weighting = 'nats' holds the network against a reference; set reference to "
                "the run folder of a conditional network, or weighting = 'simple'"
            )
        margin = self.feasibility_margin
        if self.training == "dual" and not self.alpha and margin >= 0:
            raise ValueError(
                f"thresholds are {self.thresholds} nats for {len(self.constraints)} constraints, "
                f"which no model satisfies: the feasibility margin is {margin:.3g}, and it must "
                "be below 0, that is sum exp(-b) below 1. Raise thresholds, or set alpha"
            )
        return self

    @property
    def constraints(self) -> tuple[str, ...]:
        """Their names: those of the classes' numbers, or of what was known before."""
        return (
            ("known",)
            if self.pretrained
            else tuple(f"class {c}" for c in self.minority)
        )

    @property
    def bounds(self) -> tuple[float, ...]:
        """The threshold of each constraint."""
        return self.thresholds * (
            len(self.constraints) if len(self.thresholds) == 1 else 1
        )

    @property
    def feasibility_margin(self) -> float:
        """The least over all models of the worst violation in nats, for classes that do not
        overlap: ln sum exp(-b), at p(class) = exp(-b) / sum."""
        return math.log(sum(math.exp(-b) for b in self.bounds))

    def calls(self) -> int:
        """Heun's method makes two calls a step but for the last."""
        return sum(
            at["sampling_steps"] * (2 if at["sampler"] == "heun" else 1)
            - (at["sampler"] == "heun")
            for at in self.cells()
        )
