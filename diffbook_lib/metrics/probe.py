"""Linear probes: how well the class of an image is read off one block of a frozen
denoiser, which saw the image at one noise level.

The block's output is averaged over pixels; a linear classifier is trained on these
features of the training images and judged on the test images. `linear_probe` fits it with
scikit-learn on features of a few passes, for small networks; `published_probe` trains
it as it is done for published accuracies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset, Batch
from diffbook_lib.diffusion import Denoiser
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.measurement import Measurement, share_error

CHUNK = 250
Features = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads features off a network.

    denoiser: calls the network. net: the network, in evaluation mode. blocks: names of
    its modules, such as "decoder.5"; of a list of modules the last is meant.
    """

    denoiser: Denoiser
    net: nn.Module
    blocks: Sequence[str]

    @torch.no_grad()
    def features(self, x: Tensor, sigma: float, source: rng.Source) -> Features:
        """By block (n, channels), float32: of clean images x (n, ...) at noise level
        sigma, on the network's device; the noise is drawn from `source`."""
        noisy = x + sigma * rng.normal(x.shape, source).to(x.device)
        device = next(self.net.parameters()).device
        found: Features = {}
        hooks = [
            _last(self.net, name).register_forward_hook(_keep(found, name))
            for name in self.blocks
        ]
        try:
            self.denoiser(
                noisy.to(device), torch.full((len(x),), sigma, device=device)
            )
        finally:
            for hook in hooks:
                hook.remove()
        if missing := [name for name in self.blocks if name not in found]:
            raise Refused(f"the network was called but not its {', '.join(missing)}")
        return {name: found[name] for name in self.blocks}


def decoder_blocks(net: nn.Module) -> list[str]:
    """The names of the blocks of a network with a `decoder`, "decoder.0" and so on."""
    return [f"decoder.{i}" for i in range(len(net.get_submodule("decoder")._modules))]


def linear_probe(
    reader: Reader,
    train: ArrayDataset,
    test: ArrayDataset,
    sigma: float,
    *,
    flip: bool = False,
    passes: int = 2,
    seed: int = 0,
) -> list[Measurement]:
    """The accuracy of each block at noise level sigma, by logistic regression on the
    standardised features of `passes` passes over the training images, each with new
    noise and, with `flip`, new mirrorings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = -(-len(train) * passes // CHUNK)
    known = _gather(
        (reader.features(batch.x, sigma, noise), _labels(batch))
        for batch, noise in _training(train, flip, CHUNK, range(steps), seed)
    )
    unseen = _gather(_testing(reader, test, sigma, seed))
    found = {}
    for name in reader.blocks:
        line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        line.fit(known[0][name].numpy(), known[1].numpy())
        guess = torch.from_numpy(line.predict(unseen[0][name].numpy()))
        found[name] = guess == unseen[1]
    details = {"fit": "logistic regression", "passes": passes, "flip": flip}
    return _measurements(found, sigma, seed, {**details, "training": len(train)})


def published_probe(
    reader: Reader,
    train: ArrayDataset,
    test: ArrayDataset,
    sigma: float,
    *,
    flip: bool = True,
    epochs: int = 15,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[Measurement]:
    """The accuracy of each block at noise level sigma after the published training: one
    linear layer on features that are not normalised, cross-entropy, Adam, a rate that
    falls by half a cosine from epoch to epoch, new noise and mirrorings in each."""
    lines = _lines(reader, train, sigma, seed)
    optimizer = torch.optim.Adam(lines.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    steps = max(1, len(train) // batch)
    for epoch in range(epochs):
        numbers = range(epoch * steps, (epoch + 1) * steps)
        for images, noise in _training(train, flip, batch, numbers, seed):
            features = reader.features(images.x, sigma, noise)
            losses = [
                F.cross_entropy(lines[_key(n)](f), _labels(images).to(f.device))
                for n, f in features.items()
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        schedule.step()
    hits: dict[str, list[Tensor]] = {name: [] for name in reader.blocks}
    for features, truth in _testing(reader, test, sigma, seed):
        for name, values in features.items():
            guess = lines[_key(name)](values).argmax(dim=1).cpu()
            hits[name].append(guess == truth)
    details = {
        "fit": "Adam",
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "flip": flip,
    }
    found = {name: torch.cat(parts) for name, parts in hits.items()}
    return _measurements(found, sigma, seed, {**details, "training": len(train)})


def _lines(
    reader: Reader, train: ArrayDataset, sigma: float, seed: int
) -> nn.ModuleDict:
    """A linear layer for each block, on the network's device."""
    source = rng.generator(seed, "probe/width")
    one = reader.features(train[:1].x, sigma, source)
    with rng.seeded(seed, "probe/lines"):
        return nn.ModuleDict(
            {
                _key(name): nn.Linear(f.shape[1], len(train.classes)).to(f.device)
                for name, f in one.items()
            }
        )


def _training(
    train: ArrayDataset, flip: bool, batch: int, steps: range, seed: int
) -> Iterator[tuple[Batch, torch.Generator]]:
    """Batches of the training images in random order, and the source of their noise."""
    images = replace(train, flip=flip, dequantise=False)
    for step in steps:
        noise = rng.generator(seed, "probe/noise", step)
        yield images.batch(seed, step, batch), noise


def _testing(
    reader: Reader, test: ArrayDataset, sigma: float, seed: int
) -> Iterator[tuple[Features, Tensor]]:
    """Features and labels of the test images, in their order."""
    for start in range(0, len(test), CHUNK):
        batch = test[start : start + CHUNK]
        source = rng.generator(seed, "probe/test", start)
        yield reader.features(batch.x, sigma, source), _labels(batch)


def _gather(parts: Iterator[tuple[Features, Tensor]]) -> tuple[Features, Tensor]:
    features, labels = zip(*parts, strict=True)
    return {
        name: torch.cat([part[name].cpu() for part in features])
        for name in features[0]
    }, torch.cat(labels)


def _labels(batch: Batch) -> Tensor:
    if batch.label is None:
        raise Refused("a linear probe needs labels, and these images have none")
    return batch.label.cpu()


def _measurements(
    hits: Features, sigma: float, seed: int, details: dict[str, object]
) -> list[Measurement]:
    found = []
    for name, right in hits.items():
        share, n = right.double().mean().item(), len(right)
        measured = Measurement(
            "Accuracy of a linear probe",
            share,
            n,
            seed,
            at={"block": name, "sigma": sigma},
            details={"standard_error": share_error(share, n), **details},
            better="higher",
        )
        found.append(measured)
    return found


def _last(net: nn.Module, name: str) -> nn.Module:
    """The module of that name; of a list, which is never called itself, the last."""
    module = net.get_submodule(name)
    while isinstance(module, nn.ModuleList):
        module = module[-1]
    return module


def _keep(found: Features, name: str) -> Callable[[nn.Module, object, Tensor], None]:
    """A hook that keeps the output's mean over everything behind the channels."""

    def hook(module: nn.Module, given: object, output: Tensor) -> None:
        found[name] = output.float().reshape(*output.shape[:2], -1).mean(dim=2)

    return hook


def _key(name: str) -> str:
    """The block's name where a module's name must have no dots."""
    return name.replace(".", "/")
