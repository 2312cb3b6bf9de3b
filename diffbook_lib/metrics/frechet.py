"""The Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) on features of one's choice."""

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import ArrayDataset, to_levels
from ..data.archives import Published, Store, data_folder
from .inputs import check_cloud, check_images, in_chunks, real_draws, unit_images
from .measurement import Measurement, measured

Features = Callable[[Tensor], Tensor]
WEIGHTS = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
)


class InceptionMissing(ValueError):
    """The package with the Inception network is not installed."""


def frechet_distance(
    samples: Tensor,
    reference: Tensor | ArrayDataset,
    features: Features,
    *,
    seed: int = 0,
    floor_draws: int = 3,
) -> Measurement:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means m and covariances C of features.

    samples, reference: images (n, c, h, w) in [-1, 1], or a data set.
    features: images -> (n, d), such as `classifier("digits").features` or `inception()`.
    seed: the seed of the samples; it also keys the draws of the floor, n images from `reference`.

    The value falls with n even for perfect samples: never compare different n.
    Raises ValueError for images that are too few, misshapen or not finite.
    """
    images = check_images(unit_images(reference))
    samples = check_images(samples, tuple(images.shape[1:]))
    fake, real = in_chunks(features, samples), in_chunks(features, images)
    rows = real_draws(len(real), len(fake), seed, floor_draws)
    draws = [gaussian_distance(real[drawn], real) for drawn in rows]
    return measured(
        "Fréchet distance",
        gaussian_distance(fake, real),
        len(samples),
        seed,
        draws,
        reference=len(real),
        features=real.shape[1],
    )


def gaussian_distance(x: Tensor, y: Tensor) -> float:
    """The squared Fréchet distance of the normal distributions fitted to x and y, (n, d) each."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features have the shapes {tuple(x.shape)} and {tuple(y.shape)}; they must be (n, d) "
            "and (m, d): flatten what the feature network returns"
        )
    given = nn.Identity()
    given.num_features = x.shape[1]  # type: ignore[assignment]
    distance = FrechetInceptionDistance(feature=given)
    distance.update(check_cloud(x, "features").double(), real=False)
    distance.update(check_cloud(y, "features").double(), real=True)
    return max(0.0, distance.compute().item())  # rounding can end below 0


def inception(device: str | torch.device = "cpu", folder: str | Path | None = None) -> Features:
    """The 2048 features of the original Inception for colour images: (n, 3, h, w) -> (n, 2048).

    The weights are downloaded at first use; `folder` is where data are, as in `data.load`.
    Raises InceptionMissing without the extra `inception`, and MissingDataError or ChecksumError
    where the weights cannot be had.
    """
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        importlib.import_module("torch_fidelity")
    except ModuleNotFoundError as error:
        raise InceptionMissing(
            f"Inception features need the package {error.name}: install the library with its "
            "extra, pip install 'diffbook_lib[inception]', or use features of your own"
        ) from error
    weights = Store(data_folder(folder)).get("inception", WEIGHTS).path
    # antialias=False is the resizing of published distances
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)
    net = net.to(device)

    def features(x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"Inception takes 3 colour channels, not {x.shape[1]}")
        return net(to_levels(x, 256).to(device, torch.uint8))

    return features
