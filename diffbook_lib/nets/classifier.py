"""A small classifier of images, whose last hidden layer serves as features."""

from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 32


class Classifier(nn.Module):
    """Images (batch, channels, size, size) in [-1, 1] -> logits (batch, classes), on whichever
    device the classifier is.

    Three convolutions; images above 8x8 are halved once more, after the first. `accuracy` is the
    share of held-out images it classifies correctly, nan before it is known.
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
        found: Tensor = self.body(x.to(self.head.weight.device))
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.features(x)))
        return logits
