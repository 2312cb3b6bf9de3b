"""A small classifier of images: the features of the Fréchet distance, and a judge of samples."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffbook_lib import data, files, rng
from diffbook_lib.bars import progress_bar
from diffbook_lib.data import ArrayDataset
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.inputs import (
    Images,
    checked_images,
    in_chunks,
    known_levels,
    share_draws,
    unit_chunks,
    unit_images,
)
from diffbook_lib.metrics.measurement import Measure, Measurement, share_error
from diffbook_lib.nets.classifier import Classifier

TRAINING_NOISE = 0.05


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; a change of any value trains it anew.

    `version` stands for the code of the network and its training.
    """

    epochs: int
    batch: int
    lr: float = 2e-3
    version: int = 1


RECIPES = {
    "digits": Recipe(epochs=25, batch=64),
    "mnist": Recipe(epochs=3, batch=128),
    "fashion-mnist": Recipe(epochs=5, batch=128),
}
COMMON = Recipe(epochs=5, batch=128)


def classifier(
    name: str, *, seed: int = 0, device: str | torch.device = "cpu", **options: Any
) -> Classifier:
    """The trained classifier of the data set `name`: "digits", "mnist" or "fashion-mnist".

    Trained on the CPU at first use (seconds for the digits, one or two minutes for the others),
    then kept in the folder that DIFFBOOK_CACHE names, else in the user's cache. A damaged file
    there is reported and the classifier trained anew. `options` go to `data.load`.
    Raises Refused for another name, and what `data.load` raises.
    """
    if name not in RECIPES:
        raise Refused(
            f"no recipe for a classifier of {name!r}; there is one for {', '.join(RECIPES)}. For "
            "other images use metrics.inception(), or train_classifier(train, test, Recipe(...))"
        )
    train, test = (data.load(name, split, **options) for split in ("train", "test"))
    assert isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset)
    return cached_classifier(train, test, RECIPES[name], seed=seed).to(device)


def classifier_of(train: ArrayDataset, test: ArrayDataset) -> Classifier:
    """The cached classifier of a labelled data set, by its recipe or a common one."""
    plain = replace(train, flip=False, dequantise=False)
    return cached_classifier(plain, test, RECIPES.get(train.name, COMMON))


def cached_classifier(
    train: ArrayDataset, test: ArrayDataset, recipe: Recipe, *, seed: int = 0
) -> Classifier:
    """`train_classifier`, kept in the cache under a name made of data, recipe and seed."""

    def build() -> dict[str, Tensor]:
        net = train_classifier(train, test, recipe, seed=seed)
        return {
            **net.state_dict(),
            "accuracy": torch.tensor(net.accuracy, dtype=torch.float64),
        }

    labels = [_labels(part).tolist() for part in (train, test)]
    key = image_digest(train, test, text=json.dumps([asdict(recipe), seed, labels]))
    stored = dict(files.cached_tensors(f"classifiers/{train.name}-{key}", build))
    net = Classifier(train.shape, train.classes)
    net.accuracy = stored.pop("accuracy").item()
    net.load_state_dict(stored)
    return net.eval()


def train_classifier(
    train: ArrayDataset, test: ArrayDataset, recipe: Recipe, *, seed: int = 0
) -> Classifier:
    """A classifier trained on `train`; its accuracy is measured on `test`."""
    truth, _ = _labels(test), _labels(train)
    with rng.seeded(seed, "classifier"):
        net = Classifier(train.shape, train.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
    steps = recipe.epochs * len(train) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps
    )
    for step in progress_bar()(
        range(steps), f"classifier of {train.name}", leave=False, delay=2
    ):
        x, label = train.batch(seed, step, recipe.batch)[:2]
        assert label is not None
        noise = rng.normal(x.shape, rng.generator(seed, "classifier/noise", step))
        loss = F.cross_entropy(net(x + TRAINING_NOISE * noise), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    guess = in_chunks(net, test).argmax(dim=1)
    net.accuracy = guess.eq(truth).double().mean().item()
    return net


class SureShare(Measure):
    """The share of samples of which a classifier is sure; see `sure_share`."""

    def __init__(
        self,
        net: Classifier,
        reference: Images,
        threshold: float = 0.9,
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.net, self.threshold, self.levels = net, threshold, levels
        self.hits = self.sure(checked_images(reference, levels, net.shape))

    def sure(self, images: Images) -> Tensor:
        """Whether the classifier is sure of each image, bool (n,)."""
        logits = in_chunks(self.net, images).double()
        return logits.softmax(dim=1).amax(dim=1) > self.threshold

    def figure(self, samples: Tensor) -> Measurement:
        samples = unit_images(samples, self.levels, self.net.shape)
        n, share = len(samples), self.sure(samples).double().mean().item()
        details = {
            "standard_error": share_error(share, n),
            "threshold": self.threshold,
            "real_share": self.hits.double().mean().item(),
            "reference": len(self.hits),
        }
        name = "Share of samples classified surely"
        return Measurement(
            name, share, n, self.seed, details=details, better="higher"
        )

    def floor(self, n: int, draws: int) -> list[float]:
        return share_draws(self.hits, n, self.seed, draws)


def sure_share(
    samples: Tensor,
    net: Classifier,
    reference: Images,
    *,
    threshold: float = 0.9,
    levels: int | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The share of samples (n, c, h, w) to which the classifier gives a class with a probability
    above `threshold`. It tells more than the Fréchet distance about malformed samples.

    reference: real images that the classifier has not seen. A draw of the floor takes n images
    of a population with a share such as these let expect, their own error included.
    levels: the number of levels of integer images; by default that of the reference.
    """
    levels = known_levels(reference, levels)
    return SureShare(net, reference, threshold, levels, seed)(samples, floor_draws)


def classes_of(samples: Tensor, net: Classifier, levels: int | None = None) -> Tensor:
    """The class for which the classifier takes each sample (n, c, h, w), int64 (n,).

    levels: the number of levels of integer images.
    """
    return in_chunks(net, unit_images(samples, levels, net.shape)).argmax(dim=1)


def class_histogram(
    samples: Tensor, net: Classifier, levels: int | None = None
) -> Tensor:
    """How many samples there are of each of `classes_of`, int64 (classes,)."""
    guess = classes_of(samples, net, levels)
    return torch.bincount(guess, minlength=len(net.classes))


def image_digest(*datasets: ArrayDataset, text: str = "") -> str:
    """16 hexadecimal digits that change with the images of data sets or with the text."""
    digest = hashlib.sha256(text.encode())
    for dataset in datasets:
        for chunk in unit_chunks(dataset):
            digest.update(chunk.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _labels(dataset: ArrayDataset) -> Tensor:
    if dataset.labels is None:
        raise Refused(
            f"data set {dataset.name!r} has no labels, so no classifier learns it"
        )
    return dataset.labels.cpu()
