"""Networks of vectors: widths, skips, and a denoiser that hears its time."""

import pytest
import torch

from pellucid.nets.mlp import BottleneckBlock, LatentDenoiser, MLPBlock, VectorGroupNorm, chain


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_chains_lead_from_the_first_width_to_the_last_and_blocks_stand_at_the_wide_end(norm):
    inward, outward = chain((32, 16, 8), 3, norm), chain((8, 16, 32), 3, norm)
    z = torch.randn(5, 32)
    assert inward(z).shape == (5, 8)
    assert outward(inward(z)).shape == (5, 32)
    assert [type(b) for b in inward] == [MLPBlock] * 3 + [BottleneckBlock] * 2
    assert [type(b) for b in outward] == [BottleneckBlock] * 2 + [MLPBlock] * 3


def test_without_skips_the_last_block_keeps_its_own():
    for widths in ((32, 16, 8), (8, 16, 32)):
        blocks = list(chain(widths, 2, "layer", skip=False))
        kept = [b.skip is not None and b.skip is not False for b in blocks]
        assert kept == [False] * (len(blocks) - 1) + [True]


def test_a_block_is_its_skip_and_what_it_adds():
    block = MLPBlock(8, "layer")
    torch.nn.init.zeros_(block.linear.weight)
    torch.nn.init.zeros_(block.linear.bias)
    x = torch.randn(3, 8)
    assert torch.equal(block(x), x)
    narrow = BottleneckBlock(8, 4, "layer")
    torch.nn.init.zeros_(narrow.linear2.weight)
    torch.nn.init.zeros_(narrow.linear2.bias)
    torch.testing.assert_close(narrow(x), x @ narrow.skip.weight.T)


def test_the_group_norm_of_vectors_is_torchs():
    ours, theirs = VectorGroupNorm(4, 24), torch.nn.GroupNorm(4, 24)
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 24))
            norm.bias.copy_(torch.linspace(-1, 1, 24))
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    (one,), (two,) = (torch.autograd.grad(norm(x).square().sum(), x) for norm in (ours, theirs))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_denoiser_of_codes_hears_its_time():
    torch.manual_seed(0)
    net = LatentDenoiser(6, width=16, depth=3)
    z = torch.randn(4, 6)
    early, late = (net(z, torch.full((4,), t)) for t in (0.1, 0.9))
    assert early.shape == (4, 6)
    assert not torch.allclose(early, late)
