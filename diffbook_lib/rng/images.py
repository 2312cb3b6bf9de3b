"""Numbers of single images: image i has its own, whatever the batch it is drawn
in."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffbook_lib.rng.counter import MASK, mixed, normals, philox, schedule
from diffbook_lib.rng.keyed import key_of

NORMAL, UNIFORM, ORDER = range(
    3
)  # last word of the counter: uses of a key that share nothing
AT_ONCE = (
    2**17
)  # normal numbers: more leave a processor's cache, fewer are mostly overhead


def image_noise(
    seed: int, purpose: str, numbers: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Standard normal float32 noise (len(numbers), *shape) in which row k belongs to
    image numbers[k] alone.

    Drawn on the CPU by numpy's counter-based generator, one counter range an image,
    so image i is the same in any batch and for every device it is later moved to.
    """
    key = key_of(seed, purpose)
    rows = [
        np.random.Generator(
            np.random.Philox(key=key, counter=[0, 0, 0, int(i)])
        ).standard_normal(tuple(shape), dtype=np.float32)
        for i in numbers
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def start_noise(
    seed: int, numbers: Sequence[int], shape: Sequence[int], part: str = "x"
) -> Tensor:
    """The noise that sampling starts from, (len(numbers), *shape): one key for the
    whole book, so that any two models with one seed start image i from the same
    numbers. `part`: the part of the state it is for, "v" for a velocity."""
    return image_noise(seed, f"start/{part}", numbers, shape)


def step_noise(
    seed: int,
    purpose: str,
    numbers: Sequence[int],
    shape: Sequence[int],
    device: str | torch.device = "cpu",
) -> Callable[[int], Tensor]:
    """The noise of a random sampler's later steps: noise(i) is draw number i,
    standard normal float32 (len(numbers), *shape) on the device, in which row k
    belongs to image numbers[k].

    Drawn there by Philox 4x32-10 without a wait of the host, a few draws at once
    where they are small; devices agree but for the rounding of logarithm and sine.
    Raises ValueError for image or draw numbers outside 0 ... 2^32 - 1.
    """
    key, image = _on(device, key_of(seed, purpose), numbers)
    size = math.prod(shape)
    block, prepared = torch.arange(-(-size // 4), device=device), schedule(key)
    ahead = max(1, AT_ONCE // max(1, 4 * len(image) * len(block)))
    last = -1, torch.empty(0)

    def noise(draw: int) -> Tensor:
        nonlocal last
        if not 0 <= draw <= MASK:
            raise ValueError(f"draw number {draw} is not one of 0 ... {MASK}")
        group, place = divmod(draw, ahead)
        if group != last[0]:
            draws = torch.arange(group * ahead, (group + 1) * ahead, device=device)
            z = normals(
                *mixed((block, draws[:, None, None], image, NORMAL), prepared)
            )
            last = group, z[..., :size].reshape(ahead, len(image), *shape)
        return last[1][place].clone()

    return noise


def image_uniform(
    seed: int,
    purpose: str,
    numbers: Sequence[int],
    shape: Sequence[int],
    device: str | torch.device = "cpu",
) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24, (len(numbers), *shape),
    in which row k belongs to image numbers[k]; the same bits on every device."""
    key, image = _on(device, key_of(seed, purpose), numbers)
    size = math.prod(shape)
    block = torch.arange(-(-size // 4), device=device)
    words = torch.stack(philox((block, 0, image, UNIFORM), key), dim=-1)
    uniform = (words.flatten(1)[:, :size] >> 8).to(torch.float32) * 2.0**-24
    return uniform.reshape(len(image), *shape)


def image_order(
    seed: int,
    purpose: str,
    numbers: Sequence[int],
    n: int,
    device: str | torch.device = "cpu",
) -> Tensor:
    """A random order of n items for each image, int64 (len(numbers), n), in which row
    k belongs to image numbers[k]; the same on every device."""
    key, image = _on(device, key_of(seed, purpose), numbers)
    a, b, _, _ = philox((torch.arange(n, device=device), 0, image, ORDER), key)
    return ((a >> 1 << 32) | b).argsort(dim=1, stable=True)  # by 63 random bits


def _on(
    device: str | torch.device, key: int, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The key (2,) and the image numbers (k, 1) as words on the device."""
    for number in (min(numbers, default=0), max(numbers, default=0)):
        if not 0 <= number <= MASK:
            raise ValueError(f"image number {number} is not one of 0 ... {MASK}")
    words = torch.tensor([key & MASK, key >> 32], device=device)
    return words, torch.tensor(list(numbers), dtype=torch.int64, device=device)[
        :, None
    ]
