"""Noise, denoisers and how they are trained, as far as several methods share it.

A noisy image is x_t = alpha (x_0 + sigma n), n standard normal. Everything in this
book is computed in the frame x = x_t / alpha = x_0 + sigma n, where only sigma is
left: a denoiser is a callable `denoiser(x, sigma, label=None)` that estimates x_0,
sigma of shape (batch,).

conversions: what a network may predict. kernels: p(x_t | x_0). levels: distributions
of sigma in training. edm: preconditioning and loss. vpsde: the variance-preserving
SDE and its loss.
"""

from diffbook_lib.diffusion.conversions import (
    Denoiser,
    Net,
    denoised_from_noise,
    denoised_from_score,
    denoised_from_v,
    expand,
    noise_from_denoised,
    normal_log_density,
    score_from_denoised,
    v_from_denoised,
)
from diffbook_lib.diffusion.edm import EDM, Draw
from diffbook_lib.diffusion.kernels import VE, VP, denoiser_from_net, perturb
from diffbook_lib.diffusion.levels import DDPM, Levels, LogNormal, UniformLogSNR
from diffbook_lib.diffusion.vpsde import VPSDE, WEIGHTINGS, VPDraw, VPScore, Weighting

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "VPSDE",
    "WEIGHTINGS",
    "Denoiser",
    "Draw",
    "Levels",
    "LogNormal",
    "Net",
    "UniformLogSNR",
    "VPDraw",
    "VPScore",
    "Weighting",
    "denoised_from_noise",
    "denoised_from_score",
    "denoised_from_v",
    "denoiser_from_net",
    "expand",
    "noise_from_denoised",
    "normal_log_density",
    "perturb",
    "score_from_denoised",
    "v_from_denoised",
]
