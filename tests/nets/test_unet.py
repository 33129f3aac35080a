import copy

import pytest
import torch
from torch import nn

from pellucid.nets.modulation import TimeModulator, VectorModulator
from pellucid.nets.unet import Decoder, Encoder, Middle, UNet, UNetConfig, skip_widths

CFG = UNetConfig(base=8, multipliers=(1, 2, 3), blocks=2, attention=(1,), head_width=8)


def awake(module, seed=0):
    """The same module with no zero weights left, so that every path carries signal."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 / max(1, p[0].numel()) ** 0.5) + 0.05)
    return module


def image(b=2, h=16, w=16, seed=1):
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net():
    return awake(UNet(CFG)).double()


@pytest.fixture
def mod(net):
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    return [(a.detach(), b.detach()) for a, b in awake(VectorModulator(net.widths, 5)).double()(z)]


def test_a_unet_is_its_three_parts_in_a_row(net, mod):
    x = image().double()
    e, m, d = net.split(mod)
    assert (len(e), len(m), len(d)) == tuple(len(p.widths) for p in (net.encoder, net.middle, net.decoder))
    h, skips = net.encoder(x, e)
    assert torch.equal(net.decoder(net.middle(h, m), skips, d), net(x, mod))


def test_widths_are_those_of_the_blocks_in_the_order_they_run(net):
    ran = []
    for module in net.modules():
        if type(module).__name__ == "ResBlock":
            module.register_forward_hook(lambda _m, _i, out: ran.append(out.shape[1]))
    net(image().double())
    assert tuple(ran) == net.widths


def test_skips_have_the_declared_widths():
    _, skips = Encoder(CFG)(image())
    assert [s.shape[1] for s in skips] == skip_widths(CFG)


@pytest.mark.parametrize(("h", "w"), [(4, 4), (8, 20), (28, 12)])
def test_any_size_that_the_stages_can_halve(h, w):
    h_mid, skips = Encoder(CFG)(image(1, h, w))
    assert h_mid.shape == (1, 24, h // 4, w // 4)
    assert skips[0].shape == (1, 8, h, w)
    assert UNet(CFG, 5)(image(1, h, w)).shape == (1, 5, h, w)


def test_other_sizes_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"16x18.*multiples of 4"):
        UNet(CFG)(image(1, 16, 18))


def test_every_parameter_gets_a_gradient():
    net, time = awake(UNet(CFG)), awake(TimeModulator(UNet(CFG).widths, 8, num_classes=2))
    out = net(image(), time(torch.tensor([0.1, 0.9]), torch.tensor([0, 1])))
    (out**2).mean().backward()
    for name, p in [*net.named_parameters(), *time.named_parameters()]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_every_block_hears_its_own_modulation(net, mod):
    """Changing the pair of block i changes the output, and a part hears no pair but its own."""
    x = image().double()
    before = net(x, mod)
    for i in range(len(mod)):
        louder = list(mod)
        louder[i] = (mod[i][0] + 0.5, mod[i][1])
        assert not torch.allclose(net(x, louder), before), f"block {i}"


def test_modulations_apply_in_order(net, mod):
    x = image().double()
    other = [(b, a) for a, b in mod]
    joined = [((1 + a) * (1 + c) - 1, b * (1 + c) + d) for (a, b), (c, d) in zip(mod, other, strict=True)]
    torch.testing.assert_close(net(x, mod, other), net(x, joined))
    assert not torch.allclose(net(x, mod, other), net(x, other, mod))


def test_a_spatial_modulation_that_is_constant_equals_a_flat_one(net, mod):
    x = image().double()
    sizes = []
    for module in net.modules():
        if type(module).__name__ == "ResBlock":
            module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape))
    want = net(x, mod)
    spread = [(a.expand(s), b.expand(s)) for (a, b), s in zip(mod, sizes[: len(mod)], strict=True)]
    torch.testing.assert_close(net(x, spread), want)


def test_a_new_unet_predicts_zero():
    assert UNet(CFG)(image()).abs().max() == 0
    h, skips = Encoder(CFG)(image())
    assert Decoder(CFG, 3, zero_tail=False)(h, skips).abs().max() > 0


def test_regions_folded_into_the_batch_equal_one_call_a_region(net, mod):
    x = image().double()
    e, m, d = net.split(mod)
    h, skips = net.encoder(x, e)
    h = net.middle(h, m)
    weights = [0.2, 0.5, 0.3]
    looped = [net.decoder(h, [s * w for s in skips], d) for w in weights]
    scale = torch.tensor(weights * 2, dtype=torch.double).view(-1, 1, 1, 1)
    fold = lambda y: y.repeat_interleave(3, 0)
    folded = net.decoder(fold(h), [fold(s) * scale for s in skips], [(fold(a), fold(b)) for a, b in d])
    torch.testing.assert_close(folded.unflatten(0, (2, 3)), torch.stack(looped, 1))


def test_a_decoder_leaves_the_callers_skips_alone(net):
    h, skips = net.encoder(image().double())
    before = [s.clone() for s in skips]
    net.decoder(net.middle(h), skips)
    assert len(skips) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(skips, before, strict=True))


def test_extra_channels_beside_skips_and_h():
    h, skips = Encoder(CFG)(image())
    wide = lambda y: torch.cat([y, y[:, :3]], 1)
    out = Decoder(CFG, skip_extra=3, in_extra=3)(wide(h), [wide(s) for s in skips])
    assert out.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_only_circular_padding_follows_a_shift(padding_mode):
    cfg = UNetConfig(base=8, multipliers=(1, 2), blocks=1, padding_mode=padding_mode, middle_attention=False)
    net, x = awake(UNet(cfg)).double(), image().double()
    roll = lambda y: torch.roll(y, (4, 6), (2, 3))
    assert torch.allclose(net(roll(x)), roll(net(x))) == (padding_mode == "circular")


def test_channels_last_changes_no_value_and_no_gradient(net, mod):
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x = image().double()
    a, b = net(x, mod), last(x.contiguous(memory_format=torch.channels_last), mod)
    torch.testing.assert_close(a, b)
    assert b.is_contiguous(memory_format=torch.channels_last)
    (a**2).sum().backward()
    (b**2).sum().backward()
    for (name, p), q in zip(net.named_parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_same_weights_same_input_same_bits():
    def step():
        torch.manual_seed(0)
        net = UNet(CFG)
        nn.init.normal_(net.decoder.tail.weight)
        (net(image()) ** 2).mean().backward()
        return [p.grad for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


def test_bf16_autocast_stays_near_single_precision():
    net = awake(UNet(CFG))
    time = awake(TimeModulator(net.widths, 8))
    x, t = image(), torch.tensor([0.1, 0.9])
    want = net(x, time(t))
    with torch.autocast("cpu", torch.bfloat16):
        features = net.features(x, time(t))
        got = net(x, time(t))
    assert features.dtype == got.dtype == torch.bfloat16
    assert (got.float() - want).norm() / want.norm() < 0.05


@pytest.mark.parametrize("attention", [(), (1, 2)])
def test_as_many_parameters_as_the_peer(attention):
    diffusers = pytest.importorskip("diffusers")
    cfg = UNetConfig(base=32, multipliers=(1, 2, 3), blocks=2, attention=attention)
    net = UNet(cfg)
    kinds = ["Attn" if s in attention else "" for s in range(3)]
    peer = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=cfg.stage_widths,
        layers_per_block=2,
        down_block_types=tuple(f"{k}DownBlock2D" for k in kinds),
        up_block_types=tuple(f"{k}UpBlock2D" for k in reversed(kinds)),
        attention_head_dim=cfg.head_width,
        resnet_time_scale_shift="scale_shift",
    )
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())
    assert count(net, TimeModulator(net.widths, cfg.base)) == pytest.approx(count(peer), rel=0.02)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base": 2}, "base=2"),
        ({"blocks": 0}, "blocks=0"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (4,)}, "4"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        UNetConfig(**wrong)


def test_middle_declares_two_blocks():
    assert Middle(CFG).widths == (24, 24)


@pytest.mark.parametrize("stem", [2, 4])
def test_a_stem_takes_more_pixels_at_once_and_gives_them_back(stem):
    cfg = UNetConfig(base=8, multipliers=(1, 2), blocks=1, stem=stem, middle_attention=False)
    net = UNet(cfg)
    assert cfg.stride == 2 * stem
    x = torch.randn(2, 3, 4 * cfg.stride, 4 * cfg.stride)
    none = [(torch.zeros(2, w, 1, 1), torch.zeros(2, w, 1, 1)) for w in net.widths]
    assert net(x, none).shape == x.shape
    assert net.features(x, none).shape[-1] == x.shape[-1] // stem
    with pytest.raises(ValueError, match=f"must be multiples of {cfg.stride}"):
        net(x[..., : -stem // 2, :], none)
    with pytest.raises(ValueError, match="stem is 3"):
        UNetConfig(stem=3)
