"""Which sample comes when: the same for any number of workers, ranks and restarts."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.data.order import Loader, Order, permutation
from pellucid.types import Batch

PINNED = (
    [9, 7, 6, 4, 3, 1, 0, 8, 5, 2],
    [2, 0, 9, 7, 5, 6, 4, 8, 1, 3],
    [False, False, False, True, False, False, False, False],
)

lengths = st.integers(1, 200)
seeds = st.integers(0, 2**63)


class Numbers:
    """Sample i is an image of the number i whose right half is negative, so that a flip shows."""

    shape = (1, 2, 2)
    class_names = ()
    fingerprint = "numbers"

    def __init__(self, length: int) -> None:
        self.length = length
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray) -> Batch:
        self.threads.add(threading.current_thread().name)
        value = torch.from_numpy(indices).float().add(1).view(-1, 1, 1, 1)
        x0 = value * torch.tensor([1.0, -1.0]).expand(len(indices), 1, 2, 2)
        return Batch(x0=x0, masks=(x0[:, 0] > 0).long(), truth={"place": value.flatten()})


@settings(deadline=None)
@given(lengths, seeds, st.integers(0, 1000))
def test_every_epoch_is_a_permutation(length, seed, epoch):
    assert sorted(permutation(length, seed, epoch)) == list(range(length))


@settings(deadline=None)
@given(lengths, st.integers(1, 32), seeds, st.integers(0, 4))
def test_the_sequence_is_epoch_after_epoch(length, batch_size, seed, epoch):
    order = Order(length, batch_size, seed)
    steps = -(-(epoch + 1) * length // batch_size)
    sequence = np.concatenate([order.indices(s) for s in range(steps)])
    np.testing.assert_array_equal(
        sequence[epoch * length : (epoch + 1) * length], permutation(length, seed, epoch)
    )


@settings(deadline=None)
@given(lengths, st.integers(1, 8), st.sampled_from([1, 2, 3, 4, 6]), seeds, st.integers(0, 10_000))
def test_ranks_joined_are_the_single_process(length, share, world, seed, step):
    whole = Order(length, share * world, seed)
    ranks = [Order(length, share * world, seed, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate([r.indices(step) for r in ranks]), whole.indices(step))
    np.testing.assert_array_equal(np.concatenate([r.coins(step, 3) for r in ranks]), whole.coins(step, 3))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_shuffling_is_uniform():
    """Each sample is equally likely at each place (chi-squared), and neighbours are no likelier to follow."""
    length, count = 12, 4000
    drawn = np.stack([permutation(length, seed, epoch) for seed in range(40) for epoch in range(100)])
    places = np.stack([np.bincount(column, minlength=length) for column in drawn.T])
    chi = ((places - count / length) ** 2 / (count / length)).sum()
    assert chi < 121 + 4 * np.sqrt(2 * 121)  # (12 - 1)^2 degrees of freedom
    follows = (np.diff(drawn, axis=1) == 1).mean()
    assert abs(follows - 1 / length) < 0.006


def test_the_order_does_not_change_between_releases():
    """A run that was begun with one release must continue with the next: these numbers are for ever."""
    assert permutation(10, 0, 0).tolist() == PINNED[0]
    assert permutation(10, 7, 3).tolist() == PINNED[1]
    assert Order(10, 8, 7).coins(5, 0).tolist() == PINNED[2]


def test_coins_are_fair_and_differ_between_epochs():
    order = Order(500, 500, 0)
    tosses = np.stack([order.coins(step, 0) for step in range(40)])
    assert abs(tosses.mean() - 0.5) < 4 * 0.5 / np.sqrt(tosses.size)
    assert not (tosses[0] == tosses[1]).all()
    assert abs((order.coins(0, 0) == order.coins(0, 1)).mean() - 0.5) < 0.1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers, flip):
    data = Numbers(37)
    order = Order(37, 8, 5)
    alone = list(islice(Loader(data, order, workers=0, flip=flip), 12))
    data.threads.clear()
    several = list(islice(Loader(data, order, workers=workers, flip=flip), 12))
    assert all(name.startswith("pellucid-data") for name in data.threads)
    for a, b in zip(alone, several, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.masks, b.masks)


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_resuming_in_mid_epoch_continues_the_sequence(start):
    data, order = Numbers(37), Order(37, 8, 5)
    whole = list(islice(Loader(data, order, flip=True), 15))
    rest = list(islice(Loader(data, order, start, workers=2, flip=True), 15 - start))
    for a, b in zip(whole[start:], rest, strict=True):
        assert torch.equal(a.x0, b.x0)


def test_flip_turns_images_and_masks_together_and_drops_the_rest():
    data, order = Numbers(64), Order(64, 64, 1)
    plain, turned = Loader(data, order).batch(2), Loader(data, order, flip=True).batch(2)
    coins = torch.from_numpy(order.coins(2, 0))
    assert 10 < coins.sum() < 54
    assert torch.equal(turned.x0[coins], plain.x0[coins].flip(-1))
    assert torch.equal(turned.x0[~coins], plain.x0[~coins])
    assert torch.equal(turned.masks, (turned.x0[:, 0] > 0).long())
    assert "place" in plain.truth
    assert not turned.truth


def test_an_error_in_a_worker_reaches_its_step():
    class Fails(Numbers):
        def batch(self, indices):
            if 3 in indices:
                raise OSError("disk gone")
            return super().batch(indices)

    order = Order(8, 2, 0)
    bad = next(s for s in range(4) if 3 in order.indices(s))
    batches = iter(Loader(Fails(8), order, workers=2))
    for _ in range(bad):
        next(batches)
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


def test_leaving_a_loader_ends_its_threads():
    before = set(threading.enumerate())
    batches = iter(Loader(Numbers(8), Order(8, 2, 0), workers=2))
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 9, "world_size": 2}, "does not divide"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Order(**{"length": 10, "batch_size": 4, "seed": 0, **arguments})


def test_an_order_of_another_length_is_refused():
    with pytest.raises(ValueError, match="37"):
        Loader(Numbers(37), Order(36, 4, 0))
