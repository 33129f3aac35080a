"""The building blocks against their plain forms, in double precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pellucid.nets.blocks import Down, NormSiLU, ResBlock, Up, groups_for


def normal(*shape, seed=0, requires_grad=True):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.double).requires_grad_(requires_grad)


def random_norm(width):
    norm = NormSiLU(width).double()
    with torch.no_grad():
        norm.weight.copy_(normal(width, seed=8))
        norm.bias.copy_(normal(width, seed=9))
    return norm


def plain(norm, x, affines):
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    for scale, shift in affines:
        h = shift + h * (1 + scale)
    return F.silu(h)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(("b", "extent"), [(2, (1, 1)), (1, (1, 1)), (2, (3, 5))])
def test_norm_silu_and_all_its_gradients_equal_the_plain_form(memory_format, count, b, extent):
    norm = random_norm(8)
    x = normal(2, 8, 3, 5).detach().contiguous(memory_format=memory_format).requires_grad_()
    affines = [
        (normal(b, 8, *extent, seed=i), normal(b, 8, *extent, seed=9 + i)) for i in range(1, count + 1)
    ]
    inputs = [x, norm.weight, norm.bias, *(part for pair in affines for part in pair)]
    ours, theirs = norm(x, affines), plain(norm, x, affines)
    g = normal(2, 8, 3, 5, seed=20, requires_grad=False)
    torch.testing.assert_close(ours, theirs)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, g), torch.autograd.grad(theirs, inputs, g), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_norm_silu_passes_gradcheck():
    norm = random_norm(8)
    affines = [(normal(2, 8, 1, 1, seed=1), normal(2, 8, 1, 1, seed=2))]
    assert torch.autograd.gradcheck(lambda x: norm(x, affines), normal(2, 8, 3, 2))


@pytest.mark.parametrize("b", [1, 2])
def test_the_length_of_a_gradient_through_norm_silu_has_the_plain_forms_gradients(b):
    """As in a gradient penalty: the second derivative, by everything that the first depends on."""
    norm = random_norm(8)
    x, scale, shift = normal(2, 8, 3, 5), normal(b, 8, 1, 1, seed=1), normal(b, 8, 1, 1, seed=2)
    g = normal(2, 8, 3, 5, seed=20, requires_grad=False)
    found = []
    for y in (norm(x, [(scale, shift)]), plain(norm, x, [(scale, shift)])):
        (gradient,) = torch.autograd.grad(y, x, g, create_graph=True)
        length = gradient.square().sum()
        found.append(torch.autograd.grad(length, [x, norm.weight, norm.bias, scale, shift]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_norm_silu_survives_a_mean_far_above_the_spread():
    """In single precision E[x^2] - E[x]^2 would lose all its digits here."""
    norm = NormSiLU(8)
    x = 1000 + torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    want = F.silu(F.group_norm(x.double(), 2)).float()
    torch.testing.assert_close(norm(x), want, atol=2e-3, rtol=0)


def test_norm_silu_leaves_its_input_alone():
    x = normal(2, 8, 3, 5)
    before = x.detach().clone()
    random_norm(8)(x).sum().backward()
    assert torch.equal(x, before)


def test_norm_silu_under_bf16_autocast_stays_in_bf16():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = NormSiLU(8)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), norm(x.float()), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular", "reflect"])
def test_up_equals_nearest_neighbour_and_a_convolution(padding_mode, memory_format):
    up = Up(4, padding_mode=padding_mode).double().to(memory_format=memory_format)
    x = normal(2, 4, 3, 5).detach().contiguous(memory_format=memory_format).requires_grad_()
    g = normal(2, 4, 6, 10, seed=1, requires_grad=False)
    ours, theirs = up(x), nn.Conv2d.forward(up, F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(ours, theirs)
    inputs = [x, up.weight, up.bias]
    for got, want in zip(
        torch.autograd.grad(ours, inputs, g), torch.autograd.grad(theirs, inputs, g), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_up_keeps_no_second_set_of_weights():
    assert set(Up(4).state_dict()) == {"weight", "bias"}


def test_down_halves_either_side():
    assert Down(4)(torch.zeros(1, 4, 6, 10)).shape == (1, 4, 3, 5)


def block(c_in, c_out, **kwargs):
    torch.manual_seed(0)
    made = ResBlock(c_in, c_out, **kwargs).double()
    nn.init.normal_(made.conv2.weight, std=0.1)
    return made


def test_a_new_block_is_its_residual_path():
    x = normal(2, 8, 4, 4)
    torch.testing.assert_close(ResBlock(8, 8).double()(x, []), x)


@pytest.mark.parametrize("c_in", [8, 12])
def test_a_block_follows_its_formula(c_in):
    made = block(c_in, 8)
    x, affines = normal(2, c_in, 4, 6), [(normal(2, 8, 1, 1, seed=1), normal(2, 8, 1, 1, seed=2))]
    want = made.skip(x) + made.conv2(plain(made.norm2, made.conv1(plain(made.norm1, x, [])), affines))
    torch.testing.assert_close(made(x, affines), want)


def test_modulations_apply_in_order():
    """Shift then double is not double then shift."""
    made = block(8, 8)
    x = normal(2, 8, 4, 4)
    one, zero = torch.ones(1, 8, 1, 1).double(), torch.zeros(1, 8, 1, 1).double()
    shift, double = (zero, one), (one, zero)
    torch.testing.assert_close(made(x, [shift, double]), made(x, [(one, 2 * one)]))
    torch.testing.assert_close(made(x, [double, shift]), made(x, [(one, one)]))
    assert not torch.allclose(made(x, [shift, double]), made(x, [double, shift]))


def test_dropout_acts_in_training_alone():
    made = block(8, 8, dropout=0.5)
    x = normal(2, 8, 4, 4)
    assert not torch.equal(made(x, []), made(x, []))
    made.eval()
    assert torch.equal(made(x, []), made(x, []))


@pytest.mark.parametrize(
    ("width", "groups"), [(128, 32), (256, 32), (32, 8), (48, 12), (7, 1), (4, 1), (27, 3)]
)
def test_groups_divide_the_width_and_hold_four_channels(width, groups):
    assert groups_for(width) == groups
    assert width % groups == 0
    assert width // groups >= 4
