"""Each loss term against its definition, and latents that have the moments they are said to have."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as dist
from torch import nn

from pellucid.methods.autoencoding import Autoencoding, UnitLatents, edges, latent_statistics, psnr
from pellucid.nets.vae import (
    Autoencoder,
    AutoencoderConfig,
    LatentSpace,
    Pretrained,
    load_pretrained,
    pretrained_config,
)
from pellucid.types import Batch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=4, size=8, seed=1):
    return torch.rand(n, 3, size, size, generator=seeded(seed)) * 2 - 1


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Autoencoder(AutoencoderConfig(base=8, multipliers=(1, 2), latent_channels=2))


class Linear(LatentSpace):
    """Latents that are affine in the pixels, with a log-variance of its own for each channel."""

    channels, latent_channels, factor = 3, 3, 1

    def __init__(self, gain, shift, logvar):
        super().__init__()
        column = lambda v: torch.tensor(v)[:, None, None]
        self.gain = nn.Parameter(column(gain))
        self.shift, self.logvar = column(shift), column(logvar)

    def _moments(self, x):
        return x * self.gain + self.shift, self.logvar.expand_as(x)

    def _decode(self, z):
        return (z - self.shift) / self.gain


def test_each_term_is_its_definition():
    net, x0 = tiny(), pictures()
    stage = Autoencoding(net, kl_weight=0.3, edge_weight=0.7)
    ((player, terms),) = stage.losses(Batch(x0=x0), seeded(5))
    with torch.no_grad():
        mean, logvar = net.moments(x0)
        made = net.decode(net.encode(x0, seeded(5)))
        q = dist.Normal(mean, (logvar / 2).exp())
        nats = dist.kl_divergence(q, dist.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    error = (made - x0).double().numpy()
    assert player == "autoencoder"
    assert terms.keys() == {"l1", "edges", "kl", "_psnr"}
    assert terms["l1"].item() == pytest.approx(np.abs(error).mean(), rel=1e-5)
    wanted = sum(np.abs(np.diff(error, axis=axis)).mean() for axis in (2, 3))
    assert terms["edges"].item() == pytest.approx(0.7 * wanted, rel=1e-5)
    assert terms["kl"].item() == pytest.approx(0.3 * nats.item() / (3 * 8 * 8), rel=1e-5)


@pytest.mark.parametrize(("term", "weight"), [("kl", "kl_weight"), ("edges", "edge_weight")])
def test_a_weight_of_zero_takes_its_term_away(term, weight):
    ((_, terms),) = Autoencoding(tiny(), **{weight: 0.0}).losses(Batch(x0=pictures()), seeded())
    ((_, whole),) = Autoencoding(tiny()).losses(Batch(x0=pictures()), seeded())
    assert terms[term].item() == 0
    assert whole[term].item() > 0


def test_edges_see_no_constant_and_count_a_step_once():
    error = torch.full((2, 3, 4, 5), 0.7)
    assert edges(error).item() == 0
    error[..., 2:] += 0.5  # one of four neighbours across, none of those down
    assert edges(error).item() == pytest.approx(0.5 / 4)


def test_psnr_is_its_definition_and_finite():
    x0 = pictures()
    noisy = (x0 + 0.1 * torch.randn(x0.shape, generator=seeded())).clamp(-1, 1)
    mse = ((noisy - x0) ** 2).flatten(1).mean(1)
    assert psnr(noisy, x0).item() == pytest.approx((10 * (4 / mse).log10()).mean().item())
    assert psnr(x0, x0).item() == pytest.approx(100)
    assert psnr(torch.full((1, 3, 4, 4), 9.0), torch.ones(1, 3, 4, 4)).item() == pytest.approx(100)  # clipped


def test_the_stage_owns_every_weight_and_reaches_it():
    net = tiny()
    for i, p in enumerate(net.parameters()):  # the last layers of blocks begin at zero
        nn.init.normal_(p, std=0.2, generator=seeded(i))
    stage = Autoencoding(net)
    ((player, terms),) = stage.losses(Batch(x0=pictures()), seeded())
    sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    assert {id(p) for p in stage.players[player]} == {id(p) for p in net.parameters()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert stage.shows is None


def test_training_lowers_the_loss():
    net, batch = tiny(), Batch(x0=torch.nn.functional.avg_pool2d(pictures(8, 32), 4))
    stage = Autoencoding(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    found = []
    for step in range(40):
        ((_, terms),) = stage.losses(batch, seeded(step))
        optimizer.zero_grad()
        (terms["l1"] + terms["edges"] + terms["kl"]).backward()
        optimizer.step()
        found.append(terms["l1"].item())
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])


@pytest.mark.parametrize("weights", [{"kl_weight": -1.0}, {"edge_weight": -1.0}])
def test_weights_below_zero_are_refused(weights):
    with pytest.raises(ValueError, match="at least 0"):
        Autoencoding(tiny(), **weights)


def test_statistics_are_those_of_affine_latents():
    """Pixels are uniform on [-1, 1]: mean 0, variance 1/3; so latents a x + b have mean b, variance a^2 / 3 + noise."""
    gain, shift, logvar = [0.5, 3.0, 0.0], [1.0, -2.0, 0.0], [-20.0, -1.0, 0.0]
    mean, std = latent_statistics(Linear(gain, shift, logvar), pictures(300, 32).split(64))
    assert mean.shape == std.shape == (3, 1, 1)
    for c in range(3):
        assert mean[c].item() == pytest.approx(shift[c], abs=0.02)
        assert std[c].item() == pytest.approx(math.sqrt(gain[c] ** 2 / 3 + math.exp(logvar[c])), rel=0.01)


def test_statistics_do_not_depend_on_how_pictures_come():
    net, x = tiny(), pictures(7)
    for got, want in zip(latent_statistics(net, x.split(2)), latent_statistics(net, x.split(7)), strict=True):
        torch.testing.assert_close(got, want)


def test_no_pictures_and_no_numbers_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        latent_statistics(tiny(), [])
    broken = tiny()
    nn.init.constant_(broken.from_latents.weight, math.nan)
    nn.init.constant_(broken.to_moments[1].weight, math.nan)
    with pytest.raises(ValueError, match="not finite"):
        latent_statistics(broken, [pictures()])


def test_fitted_latents_have_mean_zero_and_variance_one_and_decode_to_the_same_pictures():
    net, x = tiny(), pictures(32, 16)
    latents = UnitLatents(net)
    latents.fit(lambda n: iter(x.split(8)))
    drawn = latents.encode(x.repeat(16, 1, 1, 1), seeded(2)).double()
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.zeros(2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var((0, 2, 3)), torch.ones(2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(latents.decode(latents.encode(x)), net.decode(net.encode(x)))


def test_fitting_fetches_what_others_trained_and_a_checkpoint_needs_no_fetching(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    latents = UnitLatents(Pretrained(pretrained_config(tmp_path)))
    latents.fit(lambda n: iter([pictures()]))
    x = pictures(seed=3)
    want = (load_pretrained(tmp_path).encode(x) - latents.mean) / latents.std
    assert torch.equal(latents.encode(x), want)
    config = latents.autoencoder.config
    (tmp_path / "config.json").unlink()
    again = UnitLatents(Pretrained(config))
    again.load_state_dict(latents.state_dict())
    assert torch.equal(again.encode(x), want)
