"""Training a denoiser: the preconditioning of EDM."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion.conversions import Denoiser, Net, expand
from diffbook_lib.diffusion.levels import Levels, LogNormal

LOG_NORMAL = LogNormal()


class Draw(NamedTuple):
    """Clean images (batch, ...), the noisy ones, and their noise levels (batch,)."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class EDM:
    """Preconditioning and training noise of Karras et al. 2022 (EDM), Table 1 and Eq.
    7-8.

    sigma_data: standard deviation of the images. levels: the distribution of the
    noise levels in training, here or from elsewhere.
    """

    sigma_data: float = 0.5
    levels: Levels = LOG_NORMAL

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2: every noise level starts with loss one."""
        return 1 / self.c_out(sigma) ** 2

    def denoiser(self, net: Net) -> Denoiser:
        """D(x, sigma) = c_skip x + c_out net(c_in x, c_noise)."""

        def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            sigma = sigma.to(x.dtype)
            out = net(expand(self.c_in(sigma), x) * x, self.c_noise(sigma), label)
            return (
                expand(self.c_skip(sigma), x) * x + expand(self.c_out(sigma), x) * out
            )

        return denoiser

    def draw(self, x: Tensor, source: rng.Source) -> Draw:
        """Noisy versions of clean images x (batch, ...), at levels drawn from
        `levels`."""
        sigma = self.levels.draw(len(x), source)
        noise = rng.normal(x.shape, source)
        return Draw(x, x + expand(sigma, x) * noise, sigma)

    def error(self, net: Net, draw: Draw, label: Tensor | None = None) -> Tensor:
        """Weighted denoising error of each image (batch,), averaged over its
        dimensions."""
        denoised = self.denoiser(net)(draw.noisy, draw.sigma, label)
        return self.weight(draw.sigma) * (denoised - draw.clean).square().flatten(
            1
        ).mean(dim=1)

    def loss(
        self, net: Net, x: Tensor, source: rng.Source, label: Tensor | None = None
    ) -> Tensor:
        """`error` at a `draw`."""
        return self.error(net, self.draw(x, source), label)
