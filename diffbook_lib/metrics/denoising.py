"""The error of a denoiser on images it has not seen."""

import torch

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.diffusion import EDM, Draw, Net, expand
from diffbook_lib.metrics.measurement import Measurement

CHUNK = 250


@torch.no_grad()
def denoising_error(
    edm: EDM,
    net: Net,
    images: ArrayDataset,
    *,
    sigma: float | None = None,
    draws: int = 8,
    labelled: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Measurement:
    """EDM's weighted error over `draws` draws of noise an image, at the noise levels of
    training or at `sigma`. Two networks with one seed see the same draws.

    labelled: tell the network the labels. device: the network's.
    """
    found = []
    for start in range(0, len(images), CHUNK):
        batch = images[start : start + CHUNK]
        for number in range(draws):
            source = rng.generator(seed, f"held out/{number}", start)
            draw = edm.draw(batch.x, source)
            if sigma is not None:
                noise = (draw.noisy - draw.clean) / expand(draw.sigma, batch.x)
                level = torch.full_like(draw.sigma, sigma)
                draw = Draw(batch.x, batch.x + sigma * noise, level)
            label = (
                batch.label.to(device)
                if labelled and batch.label is not None
                else None
            )
            draw = Draw(*(part.to(device) for part in draw))
            found.append(edm.error(net, draw, label).cpu())
    errors = torch.cat(found).double()
    return Measurement(
        "Weighted denoising error of held-out images",
        errors.mean().item(),
        len(errors),
        seed,
        at={} if sigma is None else {"sigma": sigma},
        details={
            "standard_error": (errors.std() / len(errors) ** 0.5).item(),
            "images": len(images),
        },
    )
