"""EDM2: training dynamics of diffusion models (Karras et al., CVPR 2024)."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffbook_lib.specs.base import Choice
from diffbook_lib.specs.parts import EDMNoise, Pictures, UNet

Sigma = Annotated[float, Field(gt=0)]
Sigmas = Annotated[tuple[Sigma, ...], Field(strict=False)]
Width = Annotated[float, Field(gt=0, lt=0.288)]
Widths = Annotated[tuple[Width, ...], Field(strict=False)]


class Spec(Pictures, UNet, EDMNoise):
    """A run of one of EDM2's configurations, C to G."""

    coordinates: ClassVar[tuple[str, ...]] = (
        "S_churn",
        "guidance",
        "average",
        "sampling_steps",
    )

    config: Literal["C", "D", "E", "F", "G"] = Field(
        "G",
        description="what of EDM2 the network has: each letter adds to the one before",
    )
    variant: Literal["seed", "official"] = Field(
        "seed",
        description="the network of the re-implementation for CIFAR, or the authors' G",
    )
    conditional: bool = Field(False, description="learn and draw by class label")
    lr_plain: float = Field(
        0.0,
        ge=0,
        description="highest learning rate of C, whose weights are not normalised; 0: lr",
    )
    by_epoch: bool = Field(
        False, description="the learning rate changes from epoch to epoch only"
    )
    sigma_min: float = Field(
        0.002, gt=0, description="lowest noise level of sampling"
    )
    sigma_max: float = Field(
        80.0, gt=0, description="highest noise level of sampling"
    )
    rho: float = Field(
        7.0, gt=0, description="sampling levels are even in sigma^(1/rho)"
    )
    sampling_steps: int = Field(18, ge=2, description="steps of Heun's method")
    S_churn: float = Field(0.0, ge=0, description="fresh noise in sampling; 0: none")
    S_min: float = Field(
        0.05, ge=0, description="S_churn: lowest level that gets noise"
    )
    S_max: float = Field(50.0, ge=0, description="S_churn: highest level")
    S_noise: float = Field(
        1.003, gt=0, description="S_churn: standard deviation of noise"
    )
    clip_denoised: bool = Field(
        False, description="keep the denoiser's estimates in [-1, 1] while sampling"
    )
    average: Choice = Field(
        "", description="average of the weights that samples; empty: the first of ema"
    )
    guidance: float = Field(
        1.0, description="weight of this model against the guide; 1: none"
    )
    guide: str = Field("", description="run folder of the guide")
    guide_average: Choice = Field(
        "", description="average of the guide's weights; empty: the first"
    )
    guide_images: int = Field(
        0, ge=0, description="images that the guide had seen; 0: all of its training"
    )
    guide_labelled: bool = Field(
        True,
        description="whether the guide sees the label; not in classifier-free guidance",
    )
    lengths: Widths = Field(
        (), description="sigma_rel of averages whose held-out error is measured"
    )
    held_out_images: int = Field(
        0, ge=0, description="how many of them held-out errors take; 0: all"
    )
    levels_measured: Sigmas = Field(
        (),
        description="noise levels at which held-out error and u(sigma) are measured",
    )
    growth_points: int = Field(
        0, ge=0, description="moments at which magnitudes are measured in training"
    )
    probe: Literal["none", "logistic", "published"] = Field(
        "none", description="fit of the linear probes"
    )
    probe_images: int = Field(
        0, ge=0, description="training images of linear probes; 0: all"
    )
    probe_flip: bool = Field(
        False, description="mirror the training images of linear probes at random"
    )
    probe_sigmas: Sigmas = Field((), description="noise levels of the linear probes")
    probe_blocks: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="blocks with a linear probe; empty: all of the decoder"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        falls = self.schedule == "inverse-sqrt"
        if self.schedule not in ("constant", "inverse-sqrt") or self.warmup_steps:
            raise ValueError(
                f"schedule is {self.schedule!r} and warmup_steps {self.warmup_steps}; here it is "
                "'constant' or 'inverse-sqrt' after warmup_images"
            )
        if falls != bool(self.reference_steps):
            raise ValueError(
                f"schedule is {self.schedule!r}, but reference_steps is {self.reference_steps}; "
                "'inverse-sqrt' needs it, 'constant' has none"
            )
        if (self.config, self.variant) not in [
            *((c, "seed") for c in "CDEFG"),
            ("G", "official"),
        ]:
            raise ValueError(
                f"there is no official network of configuration {self.config}"
            )
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}"
            )
        if (self.guidance != 1 or "guidance" in self.table) and not self.guide:
            raise ValueError(
                f"guidance is {self.guidance}, but guide names no run folder"
            )
        tracked = [name for name in self.ema if name.startswith("power-")]
        wanted = self.average.startswith("power-") and self.average not in tracked
        if (wanted or self.lengths) and not (self.snapshot_every and tracked):
            raise ValueError(
                "averages that are not tracked need snapshots of power averages: set "
                f"snapshot_every, now {self.snapshot_every}, and ema, now {', '.join(self.ema)}"
            )
        if self.probe != "none" and not self.probe_sigmas:
            raise ValueError(f"probe is {self.probe!r}, but probe_sigmas is empty")
        return self

    @property
    def highest_lr(self) -> float:
        """That of the configuration."""
        return self.lr_plain or self.lr if self.config == "C" else self.lr

    @property
    def fall_steps(self) -> int:
        """Where the learning rate begins to fall: from E on, whose weights cannot grow; 0
        before."""
        return self.reference_steps if self.config in "EFG" else 0

    def calls(self) -> int:
        """A guide's calls are counted as if it were as large as the model."""
        return sum(
            (2 * at["sampling_steps"] - 1) * (1 if at["guidance"] == 1 else 2)
            for at in self.cells()
        )
