"""CoFi's losses against numpy and torch.distributions, and its codes against what they are said to do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as dist
from torch import nn

from pellucid.methods.base import CollapseError
from pellucid.methods.cofi.coarse import Coarse, CoarseConfig, Frequencies, characteristic, discrepancy
from pellucid.methods.cofi.fine import CodedDiffusion, CodedStage, CodeModulator, FineConfig
from pellucid.methods.cofi.method import CoFi, CoFiConfig
from pellucid.methods.contrast import ViewConfig, nt_xent, view
from pellucid.methods.priors import PriorConfig, bits_of
from pellucid.nets.blocks import ResBlock
from pellucid.nets.gan import GANConfig
from pellucid.nets.unet import UNetConfig
from pellucid.nets.vae import AutoencoderConfig
from pellucid.process.samplers import SAMPLERS
from pellucid.types import Batch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=4, size=8, seed=1):
    return torch.rand(n, 3, size, size, generator=seeded(seed)) * 1.6 - 0.8


def unet(**options):
    return UNetConfig(**{"base": 8, "multipliers": (1, 2), "blocks": 1, "middle_attention": False} | options)


def gan(size=8, channels=3):
    return GANConfig(size=size, channels=channels, base=8, most=1, attention=0)


def fine(**options):
    return FineConfig(**{"unet": unet(), "encoder": gan(), "dim": 4} | options)


def ring(prior=None, **coarse):
    """The coarse stage of points."""
    return CoFiConfig(
        size=1,
        channels=2,
        prior=PriorConfig(**{"dim": 8, "bits": 2} | (prior or {})),
        gan=GANConfig(kind="mlp", size=1, channels=2, base=16),
        coarse=CoarseConfig(**{"contrast": 0.0, "frequencies": 16} | coarse),
    )


def small(**options):
    """Coarse and fine, on pictures of 8 pixels, with no autoencoder."""
    coarse = CoarseConfig(projector=8, frequencies=8)
    given = {"size": 8, "prior": PriorConfig(dim=8, bits=2), "gan": gan(), "coarse": coarse, "fine": fine()}
    return CoFiConfig(**given | options)


def made(config, seed=0):
    """A method with every weight moved: what begins at zero would hide what it does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = CoFi(config)
    for i, p in enumerate(method.parameters()):
        p.data += 0.1 * torch.randn(p.shape, generator=seeded(i))
    return method.eval()


def points(n=64, seed=3):
    return torch.randn(n, 2, 1, 1, generator=seeded(seed))


# ---- characteristic functions (eq. 10)


def phi(y, w):
    """By complex exponentials, in float64."""
    return np.exp(1j * y.double().numpy() @ w.double().numpy().T).mean(0)


def sample_pair(n=40, d=5, m=9):
    return (
        torch.randn(n, d, generator=seeded()),
        0.5 * torch.randn(n, d, generator=seeded(1)) + 0.3,
        torch.randn(m, d, generator=seeded(2)),
    )


def test_a_characteristic_function_is_the_mean_of_exponentials():
    y, _, w = sample_pair()
    real, imag = characteristic(y, w)
    wanted = phi(y, w)
    assert np.allclose(real, wanted.real, atol=1e-6)
    assert np.allclose(imag, wanted.imag, atol=1e-6)


def test_a_gaussians_characteristic_function_is_known():
    """E exp(i w.y) = exp(i w.m - |w|^2 s^2 / 2) for N(m, s^2 I)."""
    y = 0.7 + 0.5 * torch.randn(100_000, 3, generator=seeded())
    w = torch.randn(20, 3, generator=seeded(1))
    real, imag = characteristic(y, w)
    wanted = np.exp(1j * 0.7 * w.sum(1).numpy() - 0.125 * w.square().sum(1).numpy())
    assert np.abs(real.numpy() + 1j * imag.numpy() - wanted).max() < 5 / math.sqrt(100_000)


def test_the_discrepancy_is_that_of_all_pairs():
    """|Phi_a - Phi_b|^2 = mean cos w.(a - a') + mean cos w.(b - b') - 2 mean cos w.(a - b), over all pairs."""
    a, b, w = sample_pair()
    mean = lambda x, y, at: np.cos((x[:, None] - y[None]) @ at).mean()
    x, y, ws = (v.double().numpy() for v in (a, b, w))
    square = np.array([mean(x, x, at) + mean(y, y, at) - 2 * mean(x, y, at) for at in ws])
    found = discrepancy(characteristic(a, w), characteristic(b, w))
    assert found.item() == pytest.approx(np.sqrt(square / 2).mean(), rel=1e-5)


@pytest.mark.parametrize("amplitude", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_amplitude_and_phase_are_those_of_complex_numbers(amplitude):
    a, b, w = sample_pair()
    one, two = phi(a, w), phi(b, w)
    size = (np.abs(one) - np.abs(two)) ** 2
    turn = 2 * np.abs(one) * np.abs(two) * (1 - np.cos(np.angle(one) - np.angle(two)))
    wanted = np.sqrt(amplitude * size + (1 - amplitude) * turn).mean()
    found = discrepancy(characteristic(a, w), characteristic(b, w), amplitude)
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    back = discrepancy(characteristic(b, w), characteristic(a, w), amplitude)
    torch.testing.assert_close(found, back)


def test_a_shift_is_all_phase_and_a_scale_about_zero_all_amplitude():
    a, _, w = sample_pair(400)
    centred = torch.cat([a, -a])  # a real characteristic function, and positive where w is small
    moved = discrepancy(characteristic(a, 0.3 * w), characteristic(a + 2.0, 0.3 * w), 1.0)
    wider = discrepancy(characteristic(centred, 0.3 * w), characteristic(1.5 * centred, 0.3 * w), 0.0)
    assert moved < 1e-4
    assert wider < 1e-3
    assert discrepancy(characteristic(a, 0.3 * w), characteristic(a + 2.0, 0.3 * w), 0.0) > 0.1
    assert discrepancy(characteristic(centred, 0.3 * w), characteristic(1.5 * centred, 0.3 * w), 1.0) > 0.05


@pytest.mark.parametrize("amplitude", [0.0, 0.3, 0.5, 1.0])
def test_equal_samples_are_no_distance_apart_and_have_a_finite_gradient(amplitude):
    a, _, w = sample_pair()
    a.requires_grad_()
    w.requires_grad_()
    found = discrepancy(characteristic(a, w), characteristic(a.detach().clone(), w), amplitude)
    found.backward()
    assert found < 1e-3
    assert a.grad.isfinite().all()
    assert w.grad.isfinite().all()


def test_samples_of_one_distribution_are_as_far_apart_as_said():
    """Of order B^(-1/2): four times the samples, half the distance."""
    w = torch.randn(200, 5, generator=seeded(9))
    apart = {}
    for n in (200, 800):
        pairs = [torch.randn(2, n, 5, generator=seeded(s)) for s in range(20)]
        apart[n] = np.mean([discrepancy(characteristic(a, w), characteristic(b, w)).item() for a, b in pairs])
    assert apart[200] / apart[800] == pytest.approx(2, rel=0.1)


def test_frequencies_without_a_network_are_standard_normal():
    w = Frequencies(6, 5000, learned=False)(seeded(), torch.device("cpu"))
    assert w.shape == (5000, 6)
    assert stats.kstest(w.flatten(), "norm").pvalue > 1e-3
    learned = Frequencies(6, 5000, learned=True)(seeded(), torch.device("cpu"))
    assert learned.shape == (5000, 6)
    assert learned.abs().max() <= 1


# ---- the coarse stage's game


def turns(stage, x, seed=7):
    return dict(stage.losses(Batch(x0=x), seeded(seed)))


def numbers(terms):
    return {k: v.item() for k, v in terms.items()}


@pytest.mark.parametrize("options", [{}, {"amplitude": 0.2}, {"learned": False}, {"reciprocal": 0.7}])
def test_the_game_is_its_formulas_on_points(options):
    method = made(ring(**options))
    stage, cfg, x = Coarse(method), method.config.coarse, points()
    found = turns(stage, x)

    rng = seeded(7)
    encode = lambda y: torch.tanh(method.encoder(y).detach())
    z, _ = method.prior.sample(64, rng)
    fake = encode(method.generator(z).detach())
    w = method.frequencies(rng, x.device).detach()

    def apart(a, b):
        one, two = phi(a, w), phi(b, w)
        size = (np.abs(one) - np.abs(two)) ** 2
        turn = 2 * np.abs(one) * np.abs(two) * (1 - np.cos(np.angle(one / two)))
        return np.sqrt(cfg.amplitude * size + (1 - cfg.amplitude) * turn).mean()

    critic = numbers(found["critic"])
    assert {k for k in critic if not k.startswith("_")} == {"real", "fake", "reciprocal"}
    assert critic["real"] == pytest.approx(apart(z, encode(x)), rel=1e-3)
    assert critic["fake"] == pytest.approx(-apart(z, fake), rel=1e-3)
    assert critic["reciprocal"] == pytest.approx(cfg.reciprocal * ((fake - z) ** 2).mean().item(), rel=1e-5)

    z, _ = method.prior.sample(64, rng)
    w = method.frequencies(rng, x.device).detach()
    generator = numbers(found["generator"])
    assert generator.keys() == {"match"}
    assert generator["match"] == pytest.approx(
        apart(encode(method.generator(z).detach()), encode(x)), rel=1e-3
    )


def test_what_is_logged_is_what_it_says():
    method = made(ring())
    found = numbers(turns(Coarse(method), points())["critic"])
    rng = seeded(7)
    z, code = method.prior.sample(64, rng)
    with torch.no_grad():
        fake, real = method.encode(method.generator(z)), method.encode(points())
    error = ((fake - z) ** 2).sum(1).mean().item()
    d = z.shape[1]
    signs = np.where(fake.view(64, 2, 4).mean(2).numpy() < 0, 1, 0)
    assert found["_spread"] == pytest.approx(np.std(real.numpy(), 0, ddof=1).mean(), rel=1e-4)
    assert found["_reciprocal_error"] == pytest.approx(error, rel=1e-5)
    assert found["_read_back"] == pytest.approx((signs == bits_of(code, 2).numpy()).mean(), abs=1e-6)
    entropy = math.log(4) + d / 2 * math.log(2 * math.pi * math.e * 0.09)
    bound = entropy - d / 2 * math.log(2 * math.pi * math.e * error / d)  # lemma 1, sigma^2 = error / d
    assert found["_information"] == pytest.approx(bound, rel=1e-4)


def test_pictures_are_contrasted_by_two_views():
    config = small(fine=None, coarse=CoarseConfig(projector=8, frequencies=8, contrast=0.3, temperature=0.2))
    method, x = made(config), pictures(6)
    found = numbers(turns(Coarse(method), x)["critic"])
    rng = seeded(7)
    method.prior.sample(6, rng)
    method.frequencies(rng, x.device)
    views = [view(x, ViewConfig(), rng) for _ in range(2)]
    with torch.no_grad():
        one, two = (method.projector(torch.tanh(method.encoder(v))) for v in views)
    assert found["contrast"] == pytest.approx(0.3 * nt_xent(one, two, 0.2).item(), rel=1e-4)


def test_contrast_alone_has_no_generator_and_no_samples():
    config = small(fine=None, coarse=CoarseConfig(projector=8, adversarial=False))
    method, x = made(config), pictures(6)
    stage = Coarse(method)
    assert method.generator is None
    assert method.frequencies is None
    ((player, terms),) = stage.losses(Batch(x0=x), seeded())
    assert player == "critic"
    assert {k for k in terms if not k.startswith("_")} == {"contrast"}
    assert stage.shows is None
    torch.testing.assert_close(method.read(x, seeded())["code"], torch.tanh(method.encoder(x)))
    with pytest.raises(ValueError, match="encoder alone and makes no pictures"):
        method.sample(1, seeded())


def test_players_own_their_parts_and_each_loss_moves_its_own_alone():
    method = made(ring())
    stage = Coarse(method)
    of = lambda *parts: {id(p) for part in parts for p in part.parameters()}
    owned = {k: {id(p) for p in v} for k, v in stage.players.items()}
    assert owned == {"critic": of(method.encoder, method.frequencies), "generator": of(method.generator)}
    reached = {}
    for player, terms in stage.losses(Batch(x0=points()), seeded()):
        sum(v for k, v in terms.items() if not k.startswith("_")).backward()
        reached[player] = {id(p) for p in method.parameters() if p.grad is not None and p.grad.any()}
        method.zero_grad(set_to_none=True)
    assert (
        reached["critic"] == owned["critic"]
    )  # fakes are made without a graph: the critic pays no generator
    assert owned["generator"] <= reached["generator"]
    assert not reached["generator"] & of(method.frequencies)


def test_a_critics_real_term_falls_as_the_encoder_learns_the_prior():
    """The sign of each term: descent brings E(x) to the prior and E(G(z)) to z."""
    method = made(ring(reciprocal=6.0))
    stage, x = Coarse(method), points(256)
    optimizer = torch.optim.Adam(method.encoder.parameters(), lr=3e-3)
    seen = []
    for step in range(60):
        player, terms = next(iter(stage.losses(Batch(x0=x), seeded(step))))
        optimizer.zero_grad()
        (terms["real"] + terms["reciprocal"]).backward()
        optimizer.step()
        seen.append((terms["real"].item(), terms["reciprocal"].item()))
    first, last = np.mean(seen[:5], 0), np.mean(seen[-5:], 0)
    assert player == "critic"
    assert (last < 0.8 * first).all()


# ---- a collapse


def silenced(module):
    """Its last layer says the same of everything."""
    last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)


def until_collapse(stage, x, most):
    """Steps without training, until the stage gives up: how many; and the step at which it was first ailing."""
    ailing = None
    for step in range(most):
        for _ in stage.losses(Batch(x0=x), seeded(step)):
            pass
        try:
            stage.after_step(step)
        except CollapseError as error:
            return step + 1, ailing, str(error)
        if ailing is None and stage.ailing():
            ailing = step + 1
    return None, ailing, ""


@pytest.mark.parametrize("part", ["encoder", "generator"])
def test_a_collapse_is_told_after_patience_steps(part):
    """Of small batches too, where a single one's codes are often read back better than chance by luck."""
    method = made(ring(patience=120))
    silenced(getattr(method, part))
    steps, ailing, said = until_collapse(Coarse(method), points(32), 200)
    assert steps == 120
    assert ailing == 30
    assert "for 120 steps its codes could not be read back" in said
    assert "more coarse.reciprocal (now 6)" in said


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_codes_that_come_back_are_no_collapse(noise):
    """Exactly, or so noisily that a bit is right six times in ten (half a bit's length of noise, z of one entry)."""
    method = made(ring(patience=100, prior={"dim": 2, "bits": 2}))
    stage = Coarse(method)
    for step in range(400):
        z, code = method.prior.sample(32, seeded(step))
        stage.watch(z, z + noise * torch.randn(z.shape, generator=seeded(1000 + step)), (z, code))
        stage.after_step(step)
    assert int(method.chance_steps) == 0
    assert not stage.ailing()


def test_recovery_sets_the_count_back():
    method = made(ring(patience=50))
    stage = Coarse(method)
    real = torch.randn(32, 8, generator=seeded())

    def some(steps, *, good):
        for step in range(steps):
            z, code = method.prior.sample(32, seeded(step))
            stage.watch(real, z if good else z.roll(1, 0), (z, code))
            stage.after_step(step)

    some(45, good=False)
    assert int(method.chance_steps) == 45
    assert stage.ailing()
    some(10, good=True)
    assert int(method.chance_steps) == 0
    assert not stage.ailing()
    some(49, good=False)
    with pytest.raises(CollapseError):
        some(50, good=False)


@pytest.mark.parametrize("kind", ["mixture", "onehot"])
def test_other_priors_collapse_by_their_own_chance(kind):
    method = made(ring(prior={"kind": kind, "dim": 8}, patience=60))
    silenced(method.generator)
    assert until_collapse(Coarse(method), points(32), 80)[0] == 60


def test_the_count_survives_a_checkpoint():
    method = made(ring())
    stage = Coarse(method)
    silenced(method.encoder)
    until_collapse(stage, points(32), 7)
    other = made(ring(), seed=1)
    other.load_state_dict(method.state_dict())
    assert int(other.chance_steps) == 7


def given(x):
    return lambda n: iter(x[:n].split(3))


def test_a_coarse_stage_wants_a_picture_for_each_code():
    method = made(small(prior=PriorConfig(dim=12, bits=3)))
    Coarse(method).prepare(given(pictures(8)))
    with pytest.raises(
        ValueError, match=r"makes 8 codes, and there are 7 pictures.*set prior.bits to 2 or less"
    ):
        Coarse(method).prepare(given(pictures(7)))


def test_pictures_that_are_all_the_same_have_nothing_to_code():
    same = pictures(1).expand(10, -1, -1, -1).clone()
    with pytest.raises(ValueError, match="10 pictures were looked at and all are the same"):
        Coarse(made(small())).prepare(given(same))
    same[9, 0, 0, 0] += 0.1
    Coarse(made(small())).prepare(given(same))
