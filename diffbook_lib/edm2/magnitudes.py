"""How far the weights and activations of a network have grown, layer by layer.

Layers are matrices and convolutions, of any network, by their names. A feature is one
output of a layer, and belongs to one row of its weight.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """The stored weight of every layer, (outputs, inputs, ...)."""
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in net.named_parameters()
        if name.endswith(".weight") and parameter.ndim >= 2
    }


@torch.no_grad()
def weight_magnitudes(net: nn.Module) -> dict[str, Tensor]:
    """Root mean square of every row of the stored weights, (outputs,)."""
    return {name: _rms(weight.flatten(1)) for name, weight in weights(net).items()}


@torch.no_grad()
def activation_magnitudes(
    net: nn.Module, x: Tensor, noise: Tensor, label: Tensor | None = None
) -> dict[str, Tensor]:
    """Root mean square of every feature, over images and pixels and before any
    nonlinearity, for these inputs of the network, (outputs,)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, out: Tensor) -> None:
            found[name] = _rms(out.transpose(0, 1).flatten(1))

        return hook

    layers = {name: net.get_submodule(name) for name in weights(net)}
    hooks = [layer.register_forward_hook(keep(n)) for n, layer in layers.items()]
    try:
        net(x, noise, label)
    finally:
        for handle in hooks:
            handle.remove()
    return found


def copied(net: nn.Module) -> dict[str, Tensor]:
    """The stored weights as they are now."""
    return {name: weight.detach().clone() for name, weight in weights(net).items()}


def relative_steps(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, float]:
    """Length of the change of every layer's weight, over the length it had before."""
    return {
        name: float((after[name] - weight).norm() / weight.norm())
        for name, weight in before.items()
    }


def gradient_cosines(net: nn.Module) -> dict[str, Tensor]:
    """Cosine between every row of the stored weights and its gradient, (outputs,); 0
    where the gradient is 0. Raises ValueError for a layer without a gradient."""
    found = {}
    for name, weight in weights(net).items():
        if weight.grad is None:
            raise ValueError(f"{name} has no gradient; call backward first")
        rows = weight.detach().flatten(1), weight.grad.flatten(1)
        found[name] = torch.cosine_similarity(*rows, dim=1, eps=1e-30)
    return found


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(dim=1).sqrt()
