"""GROUP(C, s): partners against a brute-force reading of the definition, and what cannot be formed."""

from itertools import combinations, product

import numpy as np
import pytest

from pellucid.data.groups import Groups, Subset, is_held_out
from pellucid.data.order import Loader, Order
from pellucid.data.scenes import Toys
from pellucid.types import Attribute


def attributes(*sizes):
    return tuple(
        Attribute(name=f"a{i}", values=tuple(f"v{k}" for k in range(n))) for i, n in enumerate(sizes)
    )


def allowed(table, centre, subset):
    """By the definition: everything that agrees with the centre on exactly this subset."""
    agrees = lambda row: {c for c in range(table.shape[1]) if table[row, c] == table[centre, c]}
    return {row for row in range(len(table)) if (table[row] >= 0).all() and agrees(row) == set(subset)}


@pytest.mark.parametrize("shared", [1, 2])
def test_partners_agree_on_exactly_their_subset_and_all_that_do_are_as_likely(shared):
    rng = np.random.default_rng(0)
    table = rng.integers(0, (3, 4, 2), (150, 3))
    groups = Groups(attributes(3, 4, 2), table, shared=shared)
    assert groups.subsets == tuple(combinations(range(3), shared))
    for centre in (0, 7, 31):
        found = groups.partners(np.full(4000, centre), rng.random((4000, groups.partners_each)))
        for column, subset in enumerate(groups.subsets):
            wanted = allowed(table, centre, subset)
            who, counts = np.unique(found[:, column], return_counts=True)
            assert set(who.tolist()) == wanted
            expected = 4000 / len(wanted)
            assert ((counts - expected) ** 2 / expected).sum() < 3 * len(wanted) + 20


def test_every_partner_of_a_whole_epoch_is_allowed():
    table = np.array(list(product(range(2), range(3), range(2))) * 2)
    groups = Groups(attributes(2, 3, 2), table)
    found = groups.partners(np.arange(len(table)), np.random.default_rng(1).random((len(table), 3)))
    for centre, row in enumerate(found):
        for column, subset in enumerate(groups.subsets):
            assert row[column] in allowed(table, centre, subset)


def test_samples_with_unknown_values_are_nobodys_partners_and_have_none():
    table = np.array(list(product(range(2), range(2))) * 3)
    table[5, 0] = -1
    groups = Groups(attributes(2, 2), table)
    found = groups.partners(np.arange(len(table)), np.random.default_rng(2).random((len(table), 2)))
    assert found[5].tolist() == [5, 5]
    assert 5 not in np.delete(found, 5, 0)


def test_of_one_attribute_a_partner_has_the_same_value():
    table = np.array([0, 1, 0, 1, 1])[:, None]
    found = Groups(attributes(2), table).partners(np.arange(5), np.random.default_rng(0).random((5, 1)))
    assert (table[found[:, 0]] == table).all()


def test_what_cannot_be_formed_names_the_sample_and_the_attribute():
    table = np.array([*product(range(2), range(2)), (2, 0)])
    with pytest.raises(
        ValueError, match=r"for lonely\.png: nothing else has a0 'v2' and differs .*\(a1 'v0'\)"
    ):
        Groups(attributes(3, 2), table, names=["a", "b", "c", "d", "lonely.png"])
    table[-1, 1] = -1  # the way out that the message names
    Groups(attributes(3, 2), table)


@pytest.mark.parametrize(
    ("table", "shared", "said"),
    [
        (np.zeros((4, 0), int), 1, "no attributes to form groups by"),
        (np.array([[0, 0], [0, 1]]), 1, "'a0' has one value alone, 'v0'"),
        (np.array([[0, 0], [1, 1]]), 2, "shared is 2; partners share from 1 to 1 of 2"),
        (np.full((3, 2), -1), 1, "no sample has a value of every attribute"),
    ],
)
def test_tables_that_make_no_groups_are_refused(table, shared, said):
    with pytest.raises(ValueError, match=said):
        Groups(attributes(*[2] * table.shape[1]), table, shared=shared)


def test_batches_carry_partners_the_same_for_any_workers_and_ranks():
    data = Toys(size=8, length=400)
    groups = Groups(data.attributes, data.table)
    whole = Loader(data, Order(400, 8, 3), groups=groups, flip=True).batch(5)
    assert whole.partners.x0.shape == (8, 3, 3, 8, 8)
    for k, i in product(range(8), range(3)):
        same = whole.partners.attributes[k, i] == whole.attributes[k]
        assert same.nonzero().flatten().tolist() == [i]
    halves = [
        Loader(data, Order(400, 8, 3, rank=r, world_size=2), groups=groups, flip=True).batch(5)
        for r in (0, 1)
    ]
    for half, rows in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
        assert (half.partners.x0 == whole.partners.x0[rows]).all()
        assert (half.x0 == whole.x0[rows]).all()
    unseen = Loader(data, Order(400, 8, 3), groups=groups, pictures=False).batch(5)
    assert unseen.x0.shape == (8, 3, 0, 0)
    assert (unseen.attributes == whole.attributes).all()
    assert (unseen.partners.attributes == whole.partners.attributes).all()


def test_held_out_combinations_are_in_one_part_alone():
    data = Toys(size=8, length=3000)
    held, seen = (Subset(data, 1 / 8, held=h) for h in (True, False))
    assert len(held) + len(seen) == 3000
    of = lambda part: {tuple(row) for row in part.table.tolist()}
    assert not of(held) & of(seen)
    assert 0.06 < len(of(held)) / (len(of(held)) + len(of(seen))) < 0.19
    assert all(is_held_out(row, 1 / 8) for row in of(held))
    assert (held.batch(np.array([3])).attributes[0].numpy() == held.table[3]).all()
    assert held.fingerprint != seen.fingerprint
    for column in range(3):  # of every value there is something left to learn from
        assert len(np.unique(seen.table[:, column])) == len(data.attributes[column].values)
    with pytest.raises(ValueError, match="share is 1"):
        Subset(data, 1.0, held=True)


def test_toys_are_what_their_table_says():
    data = Toys(size=16, length=4000)
    assert (data.batch(np.arange(50)).attributes.numpy() == data.table[:50]).all()
    alone = data.batch(np.array([17]))
    assert (alone.x0 == data.batch(np.arange(20)).x0[17:18]).all()
    counts = [np.bincount(data.table[:, i]) for i in range(3)]
    assert all(c.min() > 0.8 * 4000 / len(c) for c in counts)
    together = np.corrcoef(data.table.T)
    assert np.abs(together[~np.eye(3, dtype=bool)]).max() < 0.06
    batch = data.batch(np.arange(400))
    left, right = (batch.attributes[:, 2] % 5 == k for k in (1, 2))
    assert batch.truth["position"][left, 0, 0].max() < 0 < batch.truth["position"][right, 0, 0].min()
