"""Shapes at every size, and networks that see one picture at a time."""

import pytest
import torch
from torch import nn

from pellucid.nets.gan import Encoder, GANConfig, Generator


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loud(net):
    """Every weight moved: blocks begin at zero, and would hide what they do."""
    for i, p in enumerate(net.parameters()):
        p.data += 0.15 * torch.randn(p.shape, generator=seeded(i))
    return net.eval()


SHAPES = [
    {"size": 8},
    {"size": 8, "stem": 2},
    {"size": 16, "stem": 4, "channels": 1},
    {"size": 16, "attention": 8, "base": 12},
    {"size": 32, "most": 2, "stem": 2, "attention": 16},
    {"size": 64, "most": 1, "stem": 4, "attention": 4},
    {"kind": "mlp", "size": 1, "channels": 2},
]


def config(**options):
    return GANConfig(**{"base": 8, "attention": 0} | options)


@pytest.mark.parametrize("options", SHAPES)
def test_shapes_and_ranges(options):
    cfg = config(**options)
    generator, encoder = loud(Generator(cfg, 6)), loud(Encoder(cfg, 7))
    x = generator(torch.randn(3, 6, generator=seeded()))
    assert x.shape == (3, cfg.channels, cfg.size, cfg.size)
    if cfg.kind == "conv":
        assert x.abs().max() <= 1
    assert encoder(x).shape == (3, 7)
    assert encoder.features(x).shape == (3, encoder.feature_width)
    tail = encoder.net[-1] if cfg.kind == "mlp" else encoder.tail
    assert torch.equal(tail(encoder.features(x)), encoder(x))


@pytest.mark.parametrize("options", SHAPES)
def test_what_a_picture_gives_does_not_depend_on_its_batch(options):
    cfg = config(**options)
    for train in (True, False):  # no layer may behave otherwise while it trains
        generator, encoder = loud(Generator(cfg, 6)).train(train), loud(Encoder(cfg, 7)).train(train)
        z = torch.randn(4, 6, generator=seeded())
        z[1:] *= 5
        x = generator(z)
        torch.testing.assert_close(generator(z[:1]), x[:1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder(x[:1]), encoder(x)[:1], atol=1e-4, rtol=1e-4)
        assert (encoder(x)[0] - encoder(x)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("options", SHAPES)
def test_gradients_of_a_sample_stay_with_it(options):
    cfg = config(**options)
    z = torch.randn(3, 6, generator=seeded(), requires_grad=True)
    x = loud(Generator(cfg, 6))(z)
    loud(Encoder(cfg, 7))(x)[1].sum().backward()
    assert z.grad[1].abs().sum() > 0
    assert z.grad[[0, 2]].abs().max() == 0


def test_every_block_of_a_generator_is_told_the_code():
    cfg = config(size=32, most=2)
    generator = loud(Generator(cfg, 6))
    nn.init.zeros_(generator.seed.weight)  # the code enters by scales and shifts alone
    seen = []
    for block in generator.blocks:
        block.norm2.register_forward_hook(lambda module, given, out: seen.append(out))
    generator(torch.randn(2, 6, generator=seeded()))
    assert len(seen) == len(cfg.widths) == 4
    assert all((out[0] - out[1]).abs().max() > 1e-2 for out in seen)


@pytest.mark.parametrize("net", [lambda c: Generator(c, 6), lambda c: Encoder(c, 6)])
def test_attention_lies_at_the_size_that_was_asked_for(net):
    for size, there in ((0, 0), (8, 1), (16, 1), (128, 0)):
        made = net(config(size=32, stem=2, attention=size))
        assert len(made.attend) == there
        sizes = []
        for part in made.attend.values():
            part.register_forward_hook(lambda module, given, out, sizes=sizes: sizes.append(out.shape[-1]))
        made(torch.zeros(1, 6) if isinstance(made, Generator) else torch.zeros(1, 3, 32, 32))
        assert sizes == [size] * there


def test_points_take_four_layers():
    cfg = config(kind="mlp", size=1, channels=2, base=64)
    for net, widths in ((Generator(cfg, 32), [32, 64, 64, 64, 2]), (Encoder(cfg, 32), [2, 64, 64, 64, 32])):
        linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
        assert [m.in_features for m in linear] + [linear[-1].out_features] == widths


def test_widths_double_up_to_the_most():
    assert GANConfig(size=64, base=16, most=4).widths == (16, 32, 64, 64, 64)
    assert GANConfig(size=64, base=16, most=8, stem=4).widths == (16, 32, 64)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "mlp", "size": 8}, "size is 8; an mlp takes points"),
        ({"size": 4}, "size is 4; a power of two from 8 on"),
        ({"size": 24}, "size is 24; a power of two"),
        ({"base": 4}, "base is 4"),
        ({"most": 0}, "most 0"),
        ({"stem": 3}, "stem is 3"),
        ({"size": 8, "stem": 4}, "stem is 4; 1, 2 or 4, and no more than a quarter of size, 8"),
    ],
)
def test_networks_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        GANConfig(**wrong)
