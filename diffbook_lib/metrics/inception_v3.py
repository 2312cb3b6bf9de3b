"""The Inception network of published Fréchet distances."""

import importlib
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffbook_lib.data import to_levels
from diffbook_lib.data.archives import Published, Store, data_folder
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.frechet import Features

LEVELS = 256
FLOPS = 11.4e9  # a forward pass of one image, resized to 299 x 299
WEIGHTS = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
)


class InceptionMissing(Refused):
    """The package with the Inception network is not installed."""


def inception(
    device: str | torch.device = "cpu", folder: str | Path | None = None
) -> Features:
    """The 2048 features of the original Inception for colour images: (n, 3, h, w) in [-1, 1],
    or their 256 integer levels -> float32 (n, 2048).

    The weights are downloaded at first use; `folder` is where data are, as in `data.load`.
    Raises InceptionMissing without the extra `inception`, and MissingDataError or ChecksumError
    where the weights cannot be had. The features raise Refused for images without 3 channels.
    """
    network = network_class()
    weights = Store(data_folder(folder)).get("inception", WEIGHTS).path
    net = network("inception-v3-compat", ["2048"], str(weights)).eval().to(device)

    def features(x: Tensor) -> Tensor:
        check_colour(tuple(x.shape[1:]))
        levels = to_levels(x, LEVELS) if x.is_floating_point() else x
        found: Tensor = net(levels.to(device, torch.uint8))[0]
        return found

    return features


def check_colour(shape: tuple[int, ...]) -> None:
    """Raises Refused for images (c, h, w) that Inception cannot take."""
    if shape[0] != 3:
        raise Refused(
            f"Inception takes 3 colour channels, not {shape[0]}: use features of your own, such "
            "as those of train_classifier(train, test, Recipe(...))"
        )


def network_class() -> Any:
    """torch-fidelity's module of the network, whose constructor takes the file of weights.

    That package as a whole imports torchvision, which the network does not need: its module
    alone is imported, and the package stays unimported for whoever wants it.
    """
    name = "torch_fidelity"
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise InceptionMissing(
            f"Inception features need the package {name}: install the library with its extra, "
            "pip install 'diffbook_lib[inception]', or use features of your own"
        )
    bare = types.ModuleType(name)
    bare.__path__ = list(found.submodule_search_locations)
    before = sys.modules.get(name)
    sys.modules[name] = before or bare
    try:
        module = importlib.import_module(f"{name}.feature_extractor_inceptionv3")
    finally:
        if before is None:
            del sys.modules[name]
    return module.FeatureExtractorInceptionV3
