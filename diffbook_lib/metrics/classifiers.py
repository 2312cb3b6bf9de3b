"""A small classifier of images: the features of the Fréchet distance, and a judge of samples."""

import hashlib
import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checkpoint, data, rng
from ..data import ArrayDataset
from ..journal import progress_bar
from .inputs import check_images, in_chunks, real_means, unit_images
from .measurement import Measurement, measured, share_error

FEATURES = 32
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


class Classifier(nn.Module):
    """Images (batch, channels, size, size) in [-1, 1] -> logits (batch, classes), on whichever
    device the classifier is.

    Three convolutions; images above 8x8 are halved once more, after the first. `accuracy` is the
    share of held-out images it classifies correctly.
    """

    def __init__(self, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
        super().__init__()
        channels, size, _ = shape
        halved_early = size > 8
        self.shape, self.classes, self.accuracy = shape, classes, float("nan")
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(2) if halved_early else nn.Identity(),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
            nn.Linear(64 * (size >> 1 + halved_early) ** 2, FEATURES),
        )
        self.head = nn.Linear(FEATURES, len(classes))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer before its nonlinearity, (batch, 32)."""
        return self.body(x.to(self.head.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.features(x)))


def classifier(
    name: str, *, seed: int = 0, device: str | torch.device = "cpu", **options
) -> Classifier:
    """The trained classifier of the data set `name`: "digits", "mnist" or "fashion-mnist".

    Trained on the CPU at first use (seconds for the digits, one or two minutes for the others),
    then kept in the folder that DIFFBOOK_CACHE names, else in the user's cache. A damaged file
    there is reported and the classifier trained anew. `options` go to `data.load`.
    Raises ValueError for another name, and what `data.load` raises.
    """
    if name not in RECIPES:
        raise ValueError(
            f"no recipe for a classifier of {name!r}; there is one for {', '.join(RECIPES)}. For "
            "other images use metrics.inception(), or train_classifier(train, test, Recipe(...))"
        )
    train, test = (data.load(name, split, **options) for split in ("train", "test"))
    assert isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset)
    return cached_classifier(train, test, RECIPES[name], seed=seed).to(device)


def cached_classifier(
    train: ArrayDataset, test: ArrayDataset, recipe: Recipe, *, seed: int = 0
) -> Classifier:
    """`train_classifier`, kept in the cache under a name made of data, recipe and seed."""
    key = _digest(train, test, json.dumps([asdict(recipe), seed]))
    file = checkpoint.file(
        data.archives.cache_folder() / "classifiers" / f"{train.name}-{key}", recipe.epochs
    )
    net = Classifier(train.shape, train.classes)
    if file.exists():
        try:
            stored = checkpoint.load(file)
            net.load_state_dict(stored.tensors)
            net.accuracy = stored.info["accuracy"]
            return net.eval()
        except checkpoint.CheckpointError as error:
            warnings.warn(f"{error}; training this classifier anew", stacklevel=3)
    net = train_classifier(train, test, recipe, seed=seed)
    _store(net, file)
    return net


def train_classifier(
    train: ArrayDataset, test: ArrayDataset, recipe: Recipe, *, seed: int = 0
) -> Classifier:
    """A classifier trained on `train`; its accuracy is measured on `test`."""
    truth = _labels(test)
    with rng.seeded(seed, "classifier"):
        net = Classifier(train.shape, train.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
    steps = recipe.epochs * len(train) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    for step in progress_bar()(range(steps), f"classifier of {train.name}", leave=False, delay=2):
        x, label = train.batch(seed, step, recipe.batch)
        noise = rng.normal(x.shape, rng.generator(seed, "classifier/noise", step))
        loss = F.cross_entropy(net(x + TRAINING_NOISE * noise), label)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    guess = in_chunks(net, unit_images(test)).argmax(dim=1)
    net.accuracy = guess.eq(truth).double().mean().item()
    return net


def sure_share(
    samples: Tensor,
    net: Classifier,
    reference: Tensor | ArrayDataset,
    *,
    threshold: float = 0.9,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The share of samples (n, c, h, w) to which the classifier gives a class with a probability
    above `threshold`; its floor is the same share of n images drawn from `reference`.

    It tells more than the Fréchet distance about malformed samples.
    """
    samples, real = check_images(samples, net.shape), check_images(unit_images(reference))

    def sure(images: Tensor) -> Tensor:
        return (in_chunks(net, images).softmax(dim=1).amax(dim=1) > threshold).double()

    share, sure_real, n = sure(samples).mean().item(), sure(real), len(samples)
    draws = real_means(sure_real, n, seed, floor_draws)
    return measured(
        f"Share of samples classified with more than {threshold:g}",
        share,
        n,
        seed,
        draws,
        better="higher",
        standard_error=share_error(share, n),
        threshold=threshold,
        real_share=sure_real.mean().item(),
    )


def class_histogram(samples: Tensor, net: Classifier) -> Tensor:
    """How many samples (n, c, h, w) the classifier takes for each class, int64 (classes,)."""
    guess = in_chunks(net, check_images(samples, net.shape)).argmax(dim=1)
    return torch.bincount(guess, minlength=len(net.classes))


def _labels(dataset: ArrayDataset) -> Tensor:
    if dataset.labels is None:
        raise ValueError(f"data set {dataset.name!r} has no labels, so no classifier learns it")
    return dataset.labels.cpu()


def _digest(train: ArrayDataset, test: ArrayDataset, text: str) -> str:
    """16 hexadecimal digits that change with the data or the text."""
    digest = hashlib.sha256(text.encode())
    for part in (train, test):
        for tensor in (part.images, _labels(part)):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _store(net: Classifier, file: Path) -> None:
    """Keep a trained classifier; where the disk refuses, say so and go on without.

    Written in a folder of its own and then renamed, since several processes may do so at once.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            info = {"accuracy": net.accuracy}
            checkpoint.save(Path(folder), int(file.stem), net.state_dict(), info).replace(file)
    except (OSError, checkpoint.CheckpointError) as error:
        warnings.warn(f"the classifier is not kept for the next start: {error}", stacklevel=4)
