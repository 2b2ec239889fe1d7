"""The order: a permutation of each epoch, the same for ever, found at any position, and without a favourite."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from unbroken.training.sample_order import LONGEST, samples_at


def epoch_of(number: int, length: int, seed: int) -> list[int]:
    positions = torch.arange(number * length, (number + 1) * length)
    return samples_at(positions, length=length, seed=seed, shuffle=True).tolist()


@given(st.integers(1, 3000), st.integers(), st.integers(0, 1000))
@example(length=1, seed=0, epoch=0)
@example(length=1 << 11, seed=-1, epoch=0)
def test_each_epoch_has_each_sample_once(length, seed, epoch):
    assert sorted(epoch_of(epoch, length, seed)) == list(range(length))


@given(st.integers(1, 500), st.integers(0, 5), st.lists(st.integers(0, 2000), min_size=1))
def test_a_position_has_its_sample_however_it_is_asked_for(length, seed, positions):
    """Across epochs, in any company and in any order."""
    together = samples_at(torch.tensor(positions), length=length, seed=seed, shuffle=True).tolist()
    alone = [samples_at(torch.tensor([p]), length=length, seed=seed, shuffle=True).item() for p in positions]
    assert together == alone


def test_the_order_is_this_one_for_ever():
    """Checkpoints of earlier versions go on in it: who changes it gives it another ORDER_VERSION."""
    assert epoch_of(0, 10, seed=0) == [9, 8, 0, 7, 4, 2, 3, 5, 1, 6]
    positions = torch.tensor([0, 1, 2**40])
    large = samples_at(positions, length=10**12, seed=7, shuffle=True)
    assert large.tolist() == [85070822746, 17285886112, 102340206496]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_of(epoch, 50, seed)) for epoch in range(10) for seed in range(10)}
    assert len(orders) == 100


def test_without_shuffling_samples_come_as_they_are_numbered():
    found = samples_at(torch.arange(3, 12), length=5, seed=1, shuffle=False)
    assert found.tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_the_longest_epoch_can_be_ordered():
    positions = torch.tensor([0, 1, LONGEST - 1])
    found = samples_at(positions, length=LONGEST, seed=3, shuffle=True)
    assert len(set(found.tolist())) == 3
    assert found.min() >= 0
    assert found.max() < LONGEST
    assert found.max() > 1 << 55


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_order_of_a_few_samples_comes_up_equally_often(length):
    """Chi-squared over 10,000 epochs; the bound is far out in its tail, and eight rounds fail it for five samples."""
    trials = 10_000
    stream = samples_at(torch.arange(length * trials), length=length, seed=11, shuffle=True)
    counts = Counter(map(tuple, stream.view(trials, length).tolist()))
    orders = math.factorial(length)
    expected = trials / orders
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    chi_squared += (orders - len(counts)) * expected
    freedom = orders - 1
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [1000, 1 << 16, 10**9])
def test_neighbours_and_places_are_spread_evenly(length):
    """Where a sample stands says nothing of which it is, nor of which comes next."""
    bins, taken = 10, min(length, 20_000)
    places, steps = torch.zeros(bins, bins), torch.zeros(bins)
    for seed in range(30):
        samples = samples_at(torch.arange(taken), length=length, seed=seed, shuffle=True)
        where = torch.arange(taken) * bins // taken, samples * bins // length
        places.index_put_(where, torch.ones(taken), accumulate=True)
        steps += torch.bincount((samples.diff() % length) * bins // length, minlength=bins)
    for counts in (places, steps):
        expected = counts.mean()
        freedom = counts.numel() - 1
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)
