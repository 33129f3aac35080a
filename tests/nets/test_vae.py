"""The KL against torch.distributions, the pretrained one against diffusers itself, and what neither may get wrong."""

import json

import pytest
import torch
from torch import distributions as dist

from pellucid.config import from_json, to_json
from pellucid.nets.vae import (
    Autoencoder,
    AutoencoderConfig,
    Pretrained,
    PretrainedConfig,
    draw,
    kl,
    load_pretrained,
    make_autoencoder,
    pretrained_config,
)

TINY = AutoencoderConfig(base=8, multipliers=(1, 2, 2), latent_channels=3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(config=TINY, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_autoencoder(config)


def pictures(n=2, size=16, channels=3, seed=1):
    return torch.rand(n, channels, size, size, generator=seeded(seed)) * 2 - 1


def test_kl_is_that_of_torch_distributions():
    mean, logvar = torch.randn(2, 5, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    q, p = dist.Normal(mean, (logvar / 2).exp()), dist.Normal(torch.zeros_like(mean), 1.0)
    torch.testing.assert_close(kl(mean, logvar), dist.kl_divergence(q, p).sum((1, 2, 3)))
    assert torch.equal(kl(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)), torch.zeros(2))


def test_draws_have_the_moments_that_they_are_drawn_from():
    mean, logvar = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-2.0, 0.0, 1.0])
    drawn = draw(mean.expand(200_000, 3), logvar.expand(200_000, 3), seeded()).double()
    torch.testing.assert_close(drawn.mean(0), mean.double(), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.var(0).log(), logvar.double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
@pytest.mark.parametrize("attention", [False, True])
def test_latents_are_smaller_by_the_factor_that_is_declared(multipliers, attention):
    config = AutoencoderConfig(
        channels=1, base=8, multipliers=multipliers, latent_channels=3, middle_attention=attention
    )
    net, f = made(config), 2 ** (len(multipliers) - 1)
    x = torch.zeros(2, 1, 8, 16)
    mean, logvar = net.moments(x)
    assert (net.channels, net.latent_channels, net.factor, config.factor) == (1, 3, f, f)
    assert mean.shape == logvar.shape == (2, 3, 8 // f, 16 // f)
    assert net.decode(mean).shape == x.shape


def test_encoding_is_the_mean_or_a_seeded_draw_around_it():
    net, x = made(), pictures()
    mean, logvar = net.moments(x)
    assert torch.equal(net.encode(x), mean)
    assert torch.equal(net.encode(x, seeded(3)), net.encode(x, seeded(3)))
    noise = (net.encode(x, seeded(3)) - mean) / (logvar / 2).exp()
    torch.testing.assert_close(noise, torch.randn(mean.shape, generator=seeded(3)), atol=1e-4, rtol=1e-4)


def test_an_untrained_one_is_nearly_without_noise():
    mean, logvar = made(AutoencoderConfig()).moments(pictures())
    assert (logvar / 2).exp().mean() < 0.3 * mean.std()


def test_each_picture_is_encoded_for_itself():
    net, x = made().double(), pictures(3).double()
    alone = torch.cat([net.encode(one) for one in x.split(1)])
    torch.testing.assert_close(net.encode(x), alone)


def test_gradients_reach_every_weight_through_a_draw():
    net, x = made(), pictures()
    torch.manual_seed(0)
    for p in net.parameters():  # the last layers of blocks begin at zero and would stop what lies before them
        torch.nn.init.normal_(p, std=0.1)
    net.decode(net.encode(x, seeded())).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_circular_padding_knows_no_border():
    """Moving a picture by one latent's width moves latents and reconstruction along."""
    config = AutoencoderConfig(base=8, multipliers=(1, 2), padding_mode="circular")
    net = made(config).double()
    x = pictures().double()
    moved = x.roll((4, 6), (2, 3))
    mean, shifted = net._moments(x)[0], net._moments(moved)[0]
    torch.testing.assert_close(shifted, mean.roll((2, 3), (2, 3)))
    torch.testing.assert_close(net.decode(shifted), net.decode(mean).roll((4, 6), (2, 3)))


@pytest.mark.parametrize("size", [(10, 12), (12, 14)])
def test_sides_that_the_factor_does_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}; latents are 4 times smaller"):
        made().encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"channels": 0}, "channels=0"),
        ({"latent_channels": 0}, "latent_channels=0"),
        ({"base": 2}, "base=2"),
        ({"blocks": 0}, "blocks=0"),
        ({"multipliers": ()}, r"multipliers=\(\)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AutoencoderConfig(**wrong)


# ---- what others have trained


@pytest.fixture(scope="module")
def peer():
    """A tiny AutoencoderKL of diffusers with random weights."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()  # fmt: skip


@pytest.fixture
def saved(peer, tmp_path):
    peer.save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_a_pretrained_one_says_what_diffusers_says(peer, saved):
    net, x = load_pretrained(saved), pictures()
    q = peer.encode(x).latent_dist
    mean, logvar = net.moments(x)
    torch.testing.assert_close(mean, q.mean)
    torch.testing.assert_close(logvar, q.logvar)
    torch.testing.assert_close(net.encode(x, seeded(4)), q.sample(seeded(4)))
    torch.testing.assert_close(net.decode(mean), peer.decode(q.mean).sample)
    assert (net.channels, net.latent_channels, net.factor) == (3, 3, 2)
    assert mean.shape == (2, 3, 8, 8)


def test_a_pretrained_one_is_frozen_and_lets_gradients_through(saved):
    net, x = load_pretrained(saved), pictures().requires_grad_()
    assert not any(p.requires_grad for p in net.parameters())
    net.decode(net.encode(x)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_pipeline_holds_its_autoencoder_in_a_folder_of_its_own(peer, tmp_path):
    peer.save_pretrained(tmp_path / "pipeline" / "vae")
    net = load_pretrained(tmp_path / "pipeline")
    torch.testing.assert_close(net.encode(pictures()), peer.encode(pictures()).latent_dist.mean)


def test_a_run_needs_its_config_and_weights_and_not_the_folder(saved):
    """What a checkpoint and config.json carry suffices once the source is gone."""
    net = load_pretrained(saved)
    text, weights = json.dumps(to_json(net.config)), net.state_dict()
    for path in saved.iterdir():
        path.unlink()
    saved.rmdir()
    again = make_autoencoder(from_json(PretrainedConfig, json.loads(text)))
    again.load_state_dict(weights)
    assert torch.equal(again.encode(pictures()), net.encode(pictures()))


def test_without_weights_it_refuses_to_work(saved):
    net = Pretrained(pretrained_config(saved))
    with pytest.raises(RuntimeError, match="no weights yet"):
        net.encode(pictures())
    with pytest.raises(RuntimeError, match="no weights yet"):
        net.decode(torch.zeros(1, 3, 8, 8))


def test_either_config_reads_back_as_its_own_kind(saved):
    for config in (TINY, pretrained_config(saved)):
        data = json.loads(json.dumps(to_json({"it": config})))["it"]
        assert from_json(type(config), data) == config
    assert isinstance(make_autoencoder(TINY), Autoencoder)


def test_another_network_in_the_place_of_the_old_one_is_refused(saved):
    net = Pretrained(pretrained_config(saved))
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(ValueError, match="another than when this recipe was made"):
        net.fetch()


def test_pickled_weights_are_never_read(peer, tmp_path):
    peer.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(ValueError, match=r"only diffusion_pytorch_model.bin, a pickle, which is never read"):
        load_pretrained(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(saved):
    from safetensors.torch import load_file, save_file

    path = saved / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("decoder.conv_in.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight"):
        load_pretrained(saved)


def test_what_is_no_autoencoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"no autoencoder could be read from {tmp_path}"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="holds a VQModel; an AutoencoderKL"):
        load_pretrained(tmp_path)


def test_without_diffusers_the_way_out_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'pellucid\[latent\]'"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "3", '{"in_channels": 3, "latent_channels": "4"}'])
def test_an_architecture_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="make it by pretrained_config"):
        PretrainedConfig(source="there", architecture=text)
