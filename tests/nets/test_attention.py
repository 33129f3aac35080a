import pytest
import torch
from torch import nn

from pellucid.nets.attention import SelfAttention


def attention(width=8, heads=2):
    torch.manual_seed(0)
    made = SelfAttention(width, heads).double()
    nn.init.normal_(made.out.weight)
    return made


def image(b=2, c=8, h=3, w=5):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(1), dtype=torch.double)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_the_written_out_sum(heads):
    made, x = attention(heads=heads), image()
    tokens = made.norm(x).flatten(2).mT  # (B, N, C)
    q, k, v = made.qkv(tokens).chunk(3, dim=-1)
    d = 8 // heads
    parts = []
    for i in range(heads):
        own = slice(i * d, (i + 1) * d)
        weights = (q[..., own] @ k[..., own].mT / d**0.5).softmax(-1)
        parts.append(weights @ v[..., own])
    want = x + made.out(torch.cat(parts, -1)).mT.reshape(x.shape)
    torch.testing.assert_close(made(x), want)


def test_attention_follows_a_permutation_of_the_places():
    made, x = attention(), image()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    move = lambda y: y.flatten(2)[..., order].view(y.shape)
    torch.testing.assert_close(made(move(x)), move(made(x)))


def test_new_attention_is_the_identity():
    x = image()
    torch.testing.assert_close(SelfAttention(8, 2).double()(x), x)


def test_memory_format_changes_no_value():
    made, x = attention(), image()
    torch.testing.assert_close(made(x.contiguous(memory_format=torch.channels_last)), made(x))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 heads"):
        SelfAttention(8, 3)
