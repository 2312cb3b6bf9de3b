"""Critically-damped Langevin diffusion (Dockhorn, Vahdat and Kreis, ICLR 2022)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffbook_lib.specs.parts import Pictures, PointNet, UNet

SAMPLERS = {
    "cld": ("em", "sscs", "sscs2", "ode"),
    "vpsde": ("em", "ancestral", "ddim", "heun"),
}
Sampler = Literal["em", "sscs", "sscs2", "ode", "ancestral", "ddim", "heun"]


class Spec(Pictures, PointNet, UNet):
    """A run of CLD, or of the same network on the diffusion without a velocity."""

    coordinates: ClassVar[tuple[str, ...]] = ("sampler", "grid", "nfe")

    sde: Literal["cld", "vpsde"] = Field(
        "cld", description="with or without a velocity"
    )
    M: float = Field(0.25, gt=0, description="mass of the velocity")
    beta0: float = Field(
        4.0, gt=0, description="beta(t) = beta0 + beta1 t, constant part"
    )
    beta1: float = Field(0.0, ge=0, description="beta(t) = beta0 + beta1 t, slope")
    gamma: float = Field(
        0.04,
        gt=0,
        le=1,
        description="initial over stationary variance of the velocity",
    )
    eps_num: float = Field(
        1e-6, ge=0, description="added to the kernel's two variances"
    )
    loss_eps: float = Field(1e-5, gt=0, lt=1, description="smallest time of the loss")
    objective: Literal["hsm", "dsm"] = Field(
        "hsm", description="hybrid or plain denoising score matching"
    )
    weighting: Literal["likelihood", "reweightedv1", "reweightedv2"] = Field(
        "reweightedv2", description="of the times in the loss"
    )
    mixed_score: bool = Field(
        True, description="learn the departure from a Gaussian's score"
    )
    network: Literal["mlp", "plain-mlp", "unet", "ncsnpp"] = Field(
        "mlp", description="mlp or plain-mlp for points, unet or ncsnpp for images"
    )
    fir: bool = Field(False, description="ncsnpp: resampling with a smoothing filter")
    progressive_input: bool = Field(
        False, description="ncsnpp: a second path from the input"
    )
    time_embedding: Literal["fourier", "positional"] = Field(
        "fourier", description="ncsnpp: of the logarithm of t, or of t"
    )
    sampler: Sampler = Field(
        "sscs",
        description="em, sscs, sscs2 or ode; without a velocity em, ancestral, ddim or heun",
    )
    grid: Literal["linear", "quadratic"] = Field(
        "quadratic", description="sampling times"
    )
    nfe: int = Field(
        100, ge=2, description="the paper's count of calls, one more than are made"
    )
    data_var: float = Field(
        0.005, ge=0, description="sscs2: variance of its reference Gaussian"
    )
    eps: float = Field(1e-3, gt=0, lt=1, description="time at which sampling stops")
    bound_images: int = Field(
        0, ge=0, description="held-out images for the likelihood bound"
    )

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        allowed = SAMPLERS[self.sde]
        if self.sampler not in allowed:
            raise ValueError(
                f"sde = {self.sde!r} is sampled by {', '.join(allowed)}, "
                f"but sampler is {self.sampler!r}"
            )
        if self.sde == "vpsde" and self.nfe < 4:
            raise ValueError(
                f"sde = 'vpsde' needs nfe of 4 or more, but nfe is {self.nfe}"
            )
        return self
