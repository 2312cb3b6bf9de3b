"""ImageNet at 512x512 as latents of an autoencoder, from the user's own archive."""

import numpy as np
import torch

from diffbook_lib.data.archives import ArchiveError, MissingDataError, Store
from diffbook_lib.data.datasets import ArrayDataset

SHAPE, CLASSES = (4, 64, 64), 1000
# of the latents of stabilityai/sd-vae-ft-mse (Karras et al. 2024, Appendix B.1)
MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
STEPS = (
    "Encode the images with the autoencoder of Stable Diffusion, take 0.5 (z - mean) / std with "
    f"the channels' mean {MEAN} and std {STD}, and save float16 latents (n, 4, 64, 64) as "
    "train.npy and val.npy, int64 labels (n,) as train-labels.npy and val-labels.npy"
)


def imagenet_latents(store: Store, split: str) -> ArrayDataset:
    """Standardised latents, read from the disk when they are asked for; `test` is the official
    val. Raises MissingDataError, or ArchiveError for latents that are not standardised."""
    name = {"train": "train", "test": "val"}[split]
    latents, labels = (_array(store, f"{name}{end}.npy") for end in ("", "-labels"))
    if tuple(latents.shape[1:]) != SHAPE or not latents.is_floating_point():
        raise ArchiveError(
            f"the latents are {latents.dtype} {tuple(latents.shape)}. {STEPS}"
        )
    std = latents[:1000].float().std().item()
    if not 0.35 < std < 0.7:
        raise ArchiveError(
            f"the standard deviation of the first latents is {std:.3g}, not 0.5. {STEPS}"
        )
    return ArrayDataset(
        latents,
        labels.to(torch.int64),
        levels=None,
        classes=tuple(map(str, range(CLASSES))),
        name="imagenet-latents",
        description=f"ImageNet 512x512 as latents, {split}: {len(latents):,} images",
    )


def _array(store: Store, name: str) -> torch.Tensor:
    path = store.find("imagenet-latents", name)
    if path is None:
        place = store.folder / "imagenet-latents"
        raise MissingDataError(f"{name} not found in {place}. {STEPS}")
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} is not a readable array file: {error}") from error
