"""Denoisers made of others: guidance by a worse one, and clipping."""

from torch import Tensor

from diffbook_lib.diffusion import Denoiser


def guided(main: Denoiser, guide: Denoiser, weight: float) -> Denoiser:
    """D = D_guide + weight (D_main - D_guide); with weight 1 it is D_main, and the guide
    is not called.

    With an `unlabelled` guide this is classifier-free guidance (Ho and Salimans 2022);
    with a smaller and less trained one that sees the label as well, autoguidance (Karras
    et al. 2024, arXiv:2406.02507).
    """
    if weight == 1:
        return main

    def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        worse = guide(x, sigma, label)
        return worse + weight * (main(x, sigma, label) - worse)

    return denoiser


def unlabelled(denoiser: Denoiser) -> Denoiser:
    """The denoiser, which is never told the label."""

    def without(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return denoiser(x, sigma)

    return without


def clipped(denoiser: Denoiser) -> Denoiser:
    """The denoiser with estimates in [-1, 1], where pixels lie. EDM does without."""

    def within(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return denoiser(x, sigma, label).clamp(-1, 1)

    return within
