"""What grades samples of a data set: features, real examples and floors in one object."""

import hashlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffbook_lib import data, files, rng
from diffbook_lib.data import ArrayDataset, SampledDataset
from diffbook_lib.errors import Refused
from diffbook_lib.exact import GaussianMixture
from diffbook_lib.metrics.classifiers import (
    RECIPES,
    SureShare,
    cached_classifier,
    image_digest,
)
from diffbook_lib.metrics.clouds import (
    RADIUS,
    InMode,
    ModeWeightError,
    NearestDistance,
    PixelDistance,
    SlicedWasserstein,
)
from diffbook_lib.metrics.frechet import Features, FrechetDistance
from diffbook_lib.metrics.inception_v3 import (
    FLOPS,
    WEIGHTS,
    check_colour,
    inception,
)
from diffbook_lib.metrics.inputs import in_chunks
from diffbook_lib.metrics.measurement import Measure, Measurement
from diffbook_lib.nets.classifier import Classifier

REAL_POINTS = 20_000
INCEPTION = f"{WEIGHTS.checksum}, 256 levels, resized as in TensorFlow 1"


class Judge:
    """Grades samples of one data set by `measures`; `Judge.of` chooses them.

    nearest: the distance to the nearest training image, where unseen images are known.
    """

    def __init__(
        self, measures: Sequence[Measure], nearest: NearestDistance | None = None
    ) -> None:
        self.measures, self.nearest = tuple(measures), nearest

    @classmethod
    def of(
        cls,
        dataset: ArrayDataset | SampledDataset,
        *,
        held_out: ArrayDataset | None = None,
        allow_partial: bool = False,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> "Judge":
        """The judge of samples of a training data set.

        Points: the sliced Wasserstein distance to 20,000 real ones; for "mixture9" also the
        share in a mode and the largest error of a mode's weight. Images of a data set with a
        recipe in RECIPES: the Fréchet distance on its classifier's features to all published
        images, and the share of which the classifier is sure, held against the held-out
        ones. Other colour images: the Fréchet distance on Inception features to `dataset`; one's
        own images, where there is no Inception or they are grey, and latents the sliced
        Wasserstein distance of their values, with a warning.

        held_out: unseen images, in place of the published test split.
        allow_partial: as in `data.load`.
        device: where features are computed.
        seed: the seed of the samples to come; it also keys real points and floors.

        Weights, classifier, test split and real features are obtained here, before anything
        is trained; features of real images are kept in the cache.
        Raises Refused for text and sound, and for grey images without a recipe;
        InceptionMissing, MissingDataError or ChecksumError for what cannot be had.
        """
        shape = tuple(dataset.shape)
        if isinstance(dataset, SampledDataset) or (
            len(shape) == 1 and dataset.levels is None
        ):
            return cls(_of_points(dataset, seed))
        if len(shape) != 3:
            raise Refused(
                f"samples of {dataset.name!r}, of the shape {shape}, are neither points nor "
                "images and have no measure here: compare models by metrics.bits_per_dim on "
                "held-out examples"
            )
        if dataset.name in RECIPES:
            return cls._of_recipe(dataset, held_out, allow_partial, device, seed)
        try:
            check_colour(shape)
            features = inception(device)
        except Refused as error:
            if dataset.name != data.OWN and dataset.levels is not None:
                raise
            warnings.warn(f"judged by pixels alone: {error}", stacklevel=2)
            return cls(_of_pixels(dataset, seed), _nearest(dataset, held_out, seed))
        real = real_features(dataset, features, INCEPTION)
        distance = FrechetDistance(real, features, shape, dataset.levels, seed)
        return cls([distance], _nearest(dataset, held_out, seed))

    @classmethod
    def _of_recipe(
        cls,
        dataset: ArrayDataset,
        held_out: ArrayDataset | None,
        allow_partial: bool,
        device: str | torch.device,
        seed: int,
    ) -> "Judge":
        train, test = (
            data.load(dataset.name, split, allow_partial=allow_partial)
            for split in ("train", "test")
        )
        assert isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset)
        net = cached_classifier(train, test, RECIPES[dataset.name]).to(device)
        unseen, key = held_out or test, _weights_digest(net)
        real = torch.cat(
            [real_features(part, net.features, key) for part in (train, unseen)]
        )
        distance = FrechetDistance(
            real, net.features, train.shape, train.levels, seed
        )
        sure = SureShare(net, unseen, levels=train.levels, seed=seed)
        return cls([distance, sure], NearestDistance(dataset, unseen, seed=seed))

    def grade(self, x: Tensor, draws: int = 10) -> list[Measurement]:
        """Every figure of samples x (n, ...), in the form of the data set's examples or, for
        images, their integer levels; `draws` draws of each floor (0: none)."""
        return [measure(x, draws) for measure in self.measures]

    def copies(self, x: Tensor, draws: int = 10) -> list[Measurement]:
        """The distance of x to the nearest training image; empty where no unseen images are
        known to compare it with."""
        return [self.nearest(x, draws)] if self.nearest else []


def real_features(dataset: ArrayDataset, features: Features, key: str) -> Tensor:
    """features(images) (n, d) of a data set, kept in the cache.

    key: names the features; a change of it or of the images computes them anew.
    """
    digest = image_digest(dataset, text=key)
    return files.cached_tensors(
        f"features/{digest}",
        lambda: {"features": in_chunks(features, dataset)},
    )["features"]


def grading_flops(name: str, shape: tuple[int, ...], count: int) -> float:
    """FLOPs of the features of `count` examples of the data set `name`; 0 for what is graded
    without a network."""
    if len(shape) != 3:
        return 0.0
    if name not in RECIPES:
        return FLOPS * count if shape[0] == 3 else 0.0
    from torch.utils.flop_counter import FlopCounterMode

    net = Classifier(shape, tuple("0123456789")).to("meta")
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *shape, device="meta"))
    return float(counter.get_total_flops() * count)


def _nearest(
    dataset: ArrayDataset, held_out: ArrayDataset | None, seed: int
) -> NearestDistance | None:
    return None if held_out is None else NearestDistance(dataset, held_out, seed=seed)


def _of_pixels(dataset: ArrayDataset, seed: int) -> list[Measure]:
    """Where no features can be had for one's own images: their pixels as points."""
    return [PixelDistance(dataset.first(min(REAL_POINTS, len(dataset))), seed)]


def _of_points(dataset: ArrayDataset | SampledDataset, seed: int) -> list[Measure]:
    if isinstance(dataset, SampledDataset):
        real = dataset.draw(REAL_POINTS, rng.generator(seed, "judge"))
    else:
        real = dataset[:].x
    distance = SlicedWasserstein(real, seed=seed)
    if dataset.name != "mixture9":
        return [distance]
    means = GaussianMixture.grid().means
    return [
        InMode(means, RADIUS, real, seed),
        ModeWeightError(means, seed=seed),
        distance,
    ]


def _weights_digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
