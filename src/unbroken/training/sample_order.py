"""The order of samples, computed: which sample stands at a position of the endless stream of epochs.

A keyed permutation, not a shuffled list: any position is found without the ones before it, so that going on in the
middle of an epoch of a billion samples costs what a batch costs, and no rank holds a list. Only integers below 2**63
are added, multiplied, shifted and compared, so no version of torch, Python or the machine can give another order, as
``torch.randperm`` is free to.

An epoch of ``length`` samples is permuted by a Feistel network on ``(length - 1).bit_length()`` bits: the bits are cut
into an upper and a lower part, of which the lower has one more where their number is odd; in each round one of the two
is XORed with a hash of the other, in turn, the lower first. There are 8 rounds, and 24 below 16 bits: with 8, some
orders of five samples come up far more often than others. What comes out not below ``length`` goes in again until it is
(less than twice on average). The keys of the rounds come out of SHAKE-256 of the seed and the epoch.
"""

from __future__ import annotations

import hashlib
import struct

import torch

ORDER_VERSION = 1
"""Kept with each checkpoint: another way of ordering must have another number."""

_ROUNDS = 8
_SMALL_BITS, _SMALL_ROUNDS = 16, 24
_WORD = 0xFFFFFFFF
_FACTORS = 0x7FEB352D, 0x2C1B3C6D  # odd and below 2**31: their product with 32 bits stays below 2**63

LONGEST = 1 << 62
"""Samples that an epoch may have."""


def samples_at(positions: torch.Tensor, *, length: int, seed: int, shuffle: bool) -> torch.Tensor:
    """The samples that stand at some positions of the stream, which is one epoch after another.

    Args:
        positions: int64, one dimension, none negative.
        length: samples in an epoch, 1 to 2**62.
        seed: any whole number.
        shuffle: False: each epoch is 0, 1, 2, ...

    Returns:
        int64, of the same shape; each at least 0 and below ``length``.
    """
    offsets = positions % length
    if not shuffle or not positions.numel():
        return offsets
    epochs, which = positions.div(length, rounding_mode="floor").unique(return_inverse=True)  # type: ignore[no-untyped-call]
    bits = (length - 1).bit_length()
    keys = torch.tensor([_keys(seed, epoch, bits) for epoch in epochs.tolist()], dtype=torch.int64)
    return _permuted(offsets, length, bits, keys[which])


def _permuted(values: torch.Tensor, length: int, bits: int, keys: torch.Tensor) -> torch.Tensor:
    found = _rounds(values, bits, keys)
    # Each value comes back into the range in the end, for it began there and the network permutes.
    while (outside := found >= length).any():
        found[outside] = _rounds(found[outside], bits, keys[outside])
    return found


def _rounds(values: torch.Tensor, bits: int, keys: torch.Tensor) -> torch.Tensor:
    split = bits - bits // 2
    upper_mask, lower_mask = (1 << bits // 2) - 1, (1 << split) - 1
    upper, lower = values >> split, values & lower_mask
    for number, (first, second) in enumerate(keys.T.unflatten(0, (-1, 2))):  # type: ignore[no-untyped-call]
        if number % 2 == 0:
            lower = lower ^ (_mixed(upper, first, second) & lower_mask)
        else:
            upper = upper ^ (_mixed(lower, first, second) & upper_mask)
    return (upper << split) | lower


def _mixed(values: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A hash of 32 bits of values of 31."""
    values = values ^ first
    values = ((values ^ (values >> 16)) * _FACTORS[0]) & _WORD
    values = (values + second) & _WORD
    values = ((values ^ (values >> 15)) * _FACTORS[1]) & _WORD
    return values ^ (values >> 16)


def _keys(seed: int, epoch: int, bits: int) -> tuple[int, ...]:
    """Two for each round."""
    text = f"unbroken sample order {ORDER_VERSION}: seed {seed}, epoch {epoch}"
    count = 2 * (_SMALL_ROUNDS if bits < _SMALL_BITS else _ROUNDS)
    return struct.unpack(f"<{count}I", hashlib.shake_256(text.encode()).digest(4 * count))
