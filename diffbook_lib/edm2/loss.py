"""Denoising with a learned weight of the noise levels (Karras et al. 2024, Appendix
B.2)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion import EDM, Draw, Net

Measures = dict[str, Tensor]


def uncertain(error: Tensor, u: Tensor) -> Tensor:
    """error / exp(u) + u: on average smallest where exp(u) is the mean of the error,
    and 1 + u there."""
    return error / u.exp() + u


@dataclass(frozen=True, eq=False)
class EDM2Loss:
    """EDM's problem, with each noise level's error divided by what is expected there.

    edm: preconditioning and noise levels. uncertainty: u(ln(sigma) / 4), (batch,) ->
    (batch,), a network trained with the denoiser and not used afterwards.
    """

    edm: EDM
    uncertainty: Callable[[Tensor], Tensor]

    def error(
        self, net: Net, draw: Draw, label: Tensor | None = None
    ) -> tuple[Tensor, Measures]:
        """The loss of each image (batch,), and as the measure "unweighted" EDM's, which
        can be compared between runs; both averaged over an image's dimensions."""
        error = self.edm.error(net, draw, label)
        u = self.uncertainty(self.edm.c_noise(draw.sigma))
        return uncertain(error, u), {"unweighted": error}

    def loss(
        self, net: Net, x: Tensor, source: rng.Source, label: Tensor | None = None
    ) -> tuple[Tensor, Measures]:
        """`error` at a draw."""
        return self.error(net, self.edm.draw(x, source), label)
