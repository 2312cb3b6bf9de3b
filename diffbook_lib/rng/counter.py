"""Philox 4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, in plain torch: the same words
on every device.

Words are int64 tensors that hold unsigned 32-bit values.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
M0, M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of the words 0 and 2
W0, W1 = (
    0x9E3779B9,
    0xBB67AE85,
)  # what is added to the two words of the key after a round
ROUNDS = 10
SMALL = 2  # first rounds, after which each word depends on the whole counter

Words = Sequence[Any]  # four, int64 tensors or plain numbers


class Schedule(NamedTuple):
    """What the rounds take from a key: its words in the `SMALL` rounds, (), and for
    each round after that the words of the key and the multipliers, (2, 1), as the
    rounds want them."""

    small: list[tuple[Tensor, ...]]
    keys: tuple[Tensor, ...]
    multipliers: tuple[Tensor, ...]


def schedule(key: Tensor) -> Schedule:
    """Of a key (2,)."""
    device = key.device
    rounds = torch.arange(ROUNDS, device=device)[:, None]
    keys = (key + rounds * torch.tensor([W0, W1], device=device)) & MASK
    small, keys = keys[:SMALL], keys[SMALL:, :, None].clone()
    multipliers = torch.tensor([M0, M1], device=device)[:, None].repeat(
        len(keys), 1, 1
    )
    # even rounds find the even words in order and leave them crossed
    keys[::2], multipliers[1::2] = keys[::2].flip(1), multipliers[1::2].flip(1)
    return Schedule(
        [words.unbind() for words in small], keys.unbind(), multipliers.unbind()
    )


def philox(counter: Words, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words at each counter, whose four words broadcast against each
    other; key (2,), on their device."""
    even, odd = mixed(counter, schedule(key))
    return even[0], odd[0] & MASK, even[1], odd[1] & MASK


def mixed(counter: Words, prepared: Schedule) -> tuple[Tensor, Tensor]:
    """The words 0 and 2, and the words 1 and 3, each (2, ...) with the dimensions to
    which the counter's words broadcast; the odd ones have anything in their high
    halves.

    A round multiplies the even words; the high halves of the products, crosswise and
    with odd words and key, are the next even words, the low halves the next odd
    words.
    """
    a, b, c, d = counter
    for k0, k1 in prepared.small:
        first, second = a * M0, c * M1
        a = ((second >> 32) ^ b ^ k0) & MASK
        c = ((first >> 32) ^ d ^ k1) & MASK
        b, d = second & MASK, first & MASK
    shape = (a | b | c | d).shape
    a, b, c, d = (word.expand(shape) for word in (a, b, c, d))
    even, odd = torch.stack([a, c]).flatten(1), (b.flatten(), d.flatten())
    upper, lower = even
    product, spare = torch.empty_like(even), torch.empty_like(even)
    for k, m in zip(prepared.keys, prepared.multipliers, strict=True):
        torch.mul(even, m, out=product)
        torch.bitwise_right_shift(product, 32, out=even)
        upper.bitwise_xor_(odd[1])
        lower.bitwise_xor_(odd[0])
        even.bitwise_xor_(k).bitwise_and_(
            MASK
        )  # also clears what the odd words had above
        odd = product[0], product[1]
        product, spare = spare, product
    return even.reshape(2, *shape), spare.reshape(2, *shape)


def normals(even: Tensor, odd: Tensor) -> Tensor:
    """What `mixed` gives, each (2, ..., n), as standard normal numbers float32 (...,
    4 n) by the method of Box and Muller: radius from the even words, angle from the
    odd ones."""
    radius = even.to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = odd.to(torch.int32).to(torch.float32).mul_(math.pi * 2.0**-31)
    *rows, n = radius.shape[1:]
    out = torch.empty(*rows, 2, 2, n, device=radius.device)
    torch.mul(radius, angle.cos(), out=out[..., 0, :, :].movedim(-2, 0))
    torch.mul(radius, angle.sin_(), out=out[..., 1, :, :].movedim(-2, 0))
    return out.flatten(-3)
