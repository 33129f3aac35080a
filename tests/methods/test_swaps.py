"""Learning by groups: the losses on codes whose answer is known, and check 1 of the method: an orthogonal mix."""

from itertools import product

import numpy as np
import pytest
import torch

from pellucid.data.groups import Groups
from pellucid.methods.swaps import columns_of, cycle, grouped, marks
from pellucid.metrics.attributes import perplexity_matrix
from pellucid.nets.mlp import chain
from pellucid.types import Attribute

SIZES = (3, 2, 4)


def table():
    return torch.tensor(list(product(range(3), range(2), range(4))))


def attributes():
    return tuple(Attribute(name=f"a{i}", values=tuple("abcd"[:n])) for i, n in enumerate(SIZES))


def one_hot(values):
    """The perfect code: each attribute's value in entries of its own."""
    return torch.cat([torch.nn.functional.one_hot(values[:, i], n).float() for i, n in enumerate(SIZES)], 1)


def a_group(samples, shared=1, n=16):
    values = table()
    groups = Groups(attributes(), values.numpy(), shared=shared)
    rng = np.random.default_rng(0)
    centre = rng.integers(0, len(values), n)
    partners = groups.partners(centre, rng.random((n, groups.partners_each)))
    return samples[centre], samples[partners]


@pytest.mark.parametrize("shared", [1, 2])
def test_a_perfect_code_costs_nothing(shared):
    own, theirs = a_group(one_hot(table()), shared)
    found = grouped(lambda x: x, lambda w: w, own, theirs, SIZES, torch.Generator(), shared=shared)
    for loss in (found.reconstruction, found.swap, found.reassembly):
        assert loss.item() == 0
    assert torch.equal(found.codes, own)
    assert torch.equal(found.made, own)


def test_a_code_whose_parts_are_mislaid_reconstructs_and_fails_the_swaps():
    turned = lambda x: x.roll(3, 1)
    own, theirs = a_group(one_hot(table()))
    found = grouped(turned, lambda w: w.roll(-3, 1), own, theirs, SIZES, torch.Generator())
    assert found.reconstruction.item() == 0
    assert found.swap.item() > 0.1


def test_a_part_that_says_more_than_its_own_fails_the_reassembly_alone():
    """Part 0 also holds a copy of attribute 1, which the decoder never looks at: no swap minds."""
    parts = (5, 2, 4)
    encode = lambda x: torch.cat([x[:, :3], x[:, 3:5], x[:, 3:]], 1)
    decode = lambda w: torch.cat([w[:, :3], w[:, 5:]], 1)
    own, theirs = a_group(one_hot(table()))
    found = grouped(encode, decode, own, theirs, parts, torch.Generator().manual_seed(0))
    assert found.reconstruction.item() == found.swap.item() == 0
    assert found.reassembly.item() > 0.01


def test_samples_without_a_group_are_in_no_swap():
    own, theirs = a_group(one_hot(table()), n=8)
    theirs[3] = own[3]
    theirs[3, 0] += 100.0
    known = torch.ones(8, dtype=torch.bool)
    known[3] = False
    args = (lambda x: x, lambda w: w, own, theirs, SIZES)
    assert grouped(*args, torch.Generator(), known=known).swap.item() == 0
    assert grouped(*args, torch.Generator()).swap.item() > 1


def test_a_swap_undone_costs_a_perfect_code_nothing_and_a_constant_one_much():
    samples = one_hot(table())
    assert cycle(lambda x: x, lambda w: w, samples, SIZES, torch.Generator().manual_seed(0)).item() == 0
    constant = lambda x: torch.zeros_like(x) + x.mean(0)
    assert cycle(constant, lambda w: w, samples, SIZES, torch.Generator().manual_seed(0)).item() > 0.1
    # a decoder that mislays a part comes back, but not where the part was exchanged in between
    turned = cycle(
        lambda x: x.roll(3, 1), lambda w: w.roll(-3, 1), samples, SIZES, torch.Generator().manual_seed(1)
    )
    assert turned.item() == 0


def test_it_is_said_when_partners_and_parts_do_not_go_together():
    own, theirs = a_group(one_hot(table()))
    with pytest.raises(ValueError, match=r"there are 2 partners; 3 parts, 1 of them shared, take 3"):
        grouped(lambda x: x, lambda w: w, own, theirs[:, :2], SIZES, torch.Generator())


def test_parts_are_columns():
    assert [(c.start, c.stop) for c in columns_of((3, 2, 4))] == [(0, 3), (3, 5), (5, 9)]
    found = marks((1, 2), [(0,), (1,), (0, 1)])
    assert found.tolist() == [[True, False, False], [False, True, True], [True, True, True]]


def learned(weights: tuple[float, float], steps: int = 400) -> torch.Tensor:
    """The perplexity matrix after groups were learned from an orthogonal mix of three attributes' embeddings."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    values = table().repeat(30, 1)
    embedded = torch.cat([torch.randn(n, 4, generator=rng)[values[:, i]] for i, n in enumerate(SIZES)], 1)
    mix = torch.linalg.qr(torch.randn(12, 12, generator=rng))[0]
    z = (embedded + 0.1 * torch.randn(embedded.shape, generator=rng)) @ mix
    groups = Groups(attributes(), values.numpy())
    parts = (4, 4, 4)
    nets = torch.nn.ModuleList([chain((12, 32, 12), 2, "layer"), chain((12, 32, 12), 2, "group")])
    optimizer = torch.optim.Adam(nets.parameters(), 3e-3)
    draw = np.random.default_rng(0)
    for _ in range(steps):
        centre = draw.integers(0, len(z), 64)
        partners = groups.partners(centre, draw.random((64, 3)))
        found = grouped(nets[0], nets[1], z[centre], z[partners], parts, rng)
        loss = found.reconstruction + weights[0] * found.swap + weights[1] * found.reassembly
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = nets[0](z)
    return perplexity_matrix([codes[:, part] for part in columns_of(parts)], values, SIZES)


def test_an_orthogonal_mix_falls_into_its_attributes_and_without_swaps_does_not():
    pytest.importorskip("sklearn")
    off = ~torch.eye(3, dtype=torch.bool)
    floor = 1 / torch.tensor(SIZES, dtype=torch.float64).expand(3, 3)
    ours, without = learned((1.0, 0.5)), learned((0.0, 0.5))
    assert ours.diagonal().min() > 0.95
    assert (ours - floor)[off].abs().mean() < 0.1
    assert (without - floor)[off].mean() > 0.2
