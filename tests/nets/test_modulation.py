import pytest
import torch

from pellucid.nets.modulation import TimeModulator, VectorModulator, repeat

WIDTHS = (8, 16, 4)


def shapes(modulation):
    return [(tuple(scale.shape), tuple(shift.shape)) for scale, shift in modulation]


def test_a_vector_gives_each_block_its_pair():
    got = shapes(VectorModulator(WIDTHS, 6)(torch.zeros(5, 6)))
    assert got == [((5, w, 1, 1), (5, w, 1, 1)) for w in WIDTHS]


def test_blocks_and_their_scale_and_shift_read_disjoint_outputs():
    made = VectorModulator(WIDTHS, 6)
    for i, pair in enumerate(made(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)))):
        for j, part in enumerate(pair):
            rows = torch.autograd.grad(part.sum(), made.project.weight, retain_graph=True)[0].abs().sum(1) > 0
            start = 2 * sum(WIDTHS[:i]) + j * WIDTHS[i]
            assert rows.nonzero().flatten().tolist() == list(range(start, start + WIDTHS[i]))


def test_a_zero_modulator_is_the_identity_and_still_learns():
    made = VectorModulator(WIDTHS, 6, zero=True)
    pairs = made(torch.ones(2, 6))
    assert all((part == 0).all() for pair in pairs for part in pair)
    sum(part.sum() for pair in pairs for part in pair).backward()
    assert made.project.weight.grad.abs().min() > 0


def test_no_class_means_the_null_class():
    made = TimeModulator(WIDTHS, 8, num_classes=3)
    t = torch.tensor([0.2, 0.7])
    none, null, first = made(t), made(t, torch.tensor([3, 3])), made(t, torch.tensor([0, 0]))
    torch.testing.assert_close(none, null)
    assert not torch.allclose(none[0][0], first[0][0])


def test_each_sample_has_its_own_time_and_class():
    made = TimeModulator(WIDTHS, 8, num_classes=3)
    t, label = torch.tensor([0.2, 0.7]), torch.tensor([0, 2])
    together = made(t, label)
    for i in range(2):
        alone = made(t[i : i + 1], label[i : i + 1])
        torch.testing.assert_close([(a[i : i + 1], b[i : i + 1]) for a, b in together], alone)


def test_times_one_discrete_step_apart_are_told_apart():
    made = TimeModulator(WIDTHS, 32)
    a, b = made(torch.tensor([0.500, 0.501]))[0][0]
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("k", [1, 3])
def test_repeat_agrees_with_regions_folded_into_the_batch(k):
    pairs = VectorModulator(WIDTHS, 6)(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    for (scale, shift), (many, shifts) in zip(pairs, repeat(pairs, k), strict=True):
        torch.testing.assert_close(many.unflatten(0, (2, k)), scale[:, None].expand(2, k, *scale.shape[1:]))
        torch.testing.assert_close(shifts.unflatten(0, (2, k)), shift[:, None].expand(2, k, *shift.shape[1:]))
