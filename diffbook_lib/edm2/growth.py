"""Magnitudes while a network trains, as a part of the training's state."""

import torch
from torch import Tensor, nn

from diffbook_lib.edm2 import magnitudes


class Growth(nn.Module):
    """The magnitudes of a network's weights and activations at the start of its training
    and after every `every` of `steps` steps.

    inputs: those of the network at which activations are measured, the same each time.
    weights, activations: root mean square of each layer's weight and output, float32
    (moments, layers); moment i is step i every. A moment still to come is zero.
    """

    weights: Tensor
    activations: Tensor

    def __init__(
        self, net: nn.Module, inputs: tuple[Tensor, ...], steps: int, every: int
    ) -> None:
        super().__init__()
        self.every, self.watched = (
            every,
            (net,),
        )  # a tuple: it is no part of this module
        self.names = list(magnitudes.weights(net))
        for i, tensor in enumerate(inputs):
            self.register_buffer(f"input_{i}", tensor, persistent=False)
        for name in ("weights", "activations"):
            empty = torch.zeros(1 + steps // every, len(self.names))
            self.register_buffer(name, empty)
        self._measure(0)

    def after_step(self, step: int, measures: object) -> None:
        """Measure, where it is time to."""
        if step % self.every == 0:
            self._measure(step // self.every)

    @torch.no_grad()
    def _measure(self, moment: int) -> None:
        (net,) = self.watched
        inputs = [tensor for name, tensor in self.named_buffers() if "input" in name]
        training = net.training
        net.eval()
        found = {
            "weights": magnitudes.weight_magnitudes(net),
            "activations": magnitudes.activation_magnitudes(net, *inputs),
        }
        net.train(training)
        for kind, by_layer in found.items():
            values = [by_layer[name].square().mean().sqrt() for name in self.names]
            self.get_buffer(kind)[moment] = torch.stack(values)
