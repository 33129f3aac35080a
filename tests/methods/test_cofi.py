"""CoFi's losses against numpy and torch.distributions, and its codes against what they are said to do."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as dist
from torch import nn

from pellucid.data.scenes import Scenes
from pellucid.methods.base import CollapseError
from pellucid.methods.cofi.coarse import Coarse, CoarseConfig, Frequencies, characteristic, discrepancy
from pellucid.methods.cofi.fine import CodeModulator, FineConfig
from pellucid.methods.cofi.method import CoFi, CoFiConfig
from pellucid.methods.contrast import ViewConfig, nt_xent, view
from pellucid.methods.priors import PriorConfig, bits_of, code_of
from pellucid.metrics.information import information_bound
from pellucid.nets.blocks import ResBlock
from pellucid.nets.gan import GANConfig
from pellucid.nets.unet import UNetConfig
from pellucid.nets.vae import AutoencoderConfig
from pellucid.process.loss import weight
from pellucid.process.samplers import SAMPLERS
from pellucid.recipes import DataSpec, build, recipe, recipe_to_json
from pellucid.train.checkpoint import latest
from pellucid.train.trainer import train
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


def test_rounded_off_it_is_a_square_near_zero_and_the_root_far_from_it():
    a, _, w = sample_pair(400)
    near = [characteristic(a + shift, w) for shift in (0.0, 0.01, 0.02)]
    small, twice = (discrepancy(near[0], b, huber=0.5) for b in near[1:])
    assert (twice / small).item() == pytest.approx(4, rel=0.03)
    root = [discrepancy(near[0], b) for b in near[1:]]
    assert (root[1] / root[0]).item() == pytest.approx(2, rel=0.01)
    far = characteristic(a + 1.0, w)
    assert discrepancy(near[0], far, huber=1e-4).item() == pytest.approx(
        discrepancy(near[0], far).item() - 1e-4, abs=2e-5
    )


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
    axes = torch.eye(6)[:2]
    w = Frequencies(axes, 5000, learned=False, along=0.0)(seeded())
    assert w.shape == (5000, 6)
    assert stats.kstest(w.flatten(), "norm").pvalue > 1e-3
    learned = Frequencies(axes, 5000, learned=True, along=0.0)(seeded())
    assert learned.shape == (5000, 6)
    assert learned.abs().max() <= 1


def test_a_share_of_the_frequencies_lies_in_the_span_of_the_priors_directions():
    axes = torch.linalg.qr(torch.randn(6, 2, generator=seeded())).Q.T
    w = Frequencies(axes, 4000, learned=False, along=0.25)(seeded(1))
    assert w.shape == (4000, 6)
    along = w[3000:]
    torch.testing.assert_close(along @ axes.T @ axes, along, atol=1e-5, rtol=1e-5)
    coefficients = (along @ axes.T).flatten()
    left_out = coefficients.abs() < 1e-6
    assert left_out.float().mean() == pytest.approx(0.5, abs=0.04)
    assert stats.kstest(coefficients[~left_out], "norm").pvalue > 1e-3
    # isotropic draws lie there with 2 / 6 of their squares alone
    isotropic = w[:3000]
    share = (isotropic @ axes.T).square().sum() / isotropic.square().sum()
    assert share == pytest.approx(1 / 3, abs=0.02)


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
    w = method.frequencies(rng).detach()

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
    w = method.frequencies(rng).detach()
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


def test_the_information_logged_is_that_of_the_entries_that_have_a_density():
    config = CoFiConfig(
        size=1, channels=2, prior=PriorConfig(kind="onehot", dim=8, bits=2),
        gan=GANConfig(kind="mlp", size=1, channels=2, base=16), coarse=CoarseConfig(contrast=0.0, frequencies=8),
    )  # fmt: skip
    method = made(config)
    found = numbers(turns(Coarse(method), points())["critic"])
    z, _ = method.prior.sample(64, seeded(7))
    with torch.no_grad():
        error = (method.encode(method.generator(z)) - z)[:, 4:].square().sum(1).mean().item()
    noise = torch.distributions.Normal(0, method.prior.noise[4:]).entropy().sum().item()
    assert found["_information"] == pytest.approx(information_bound(noise, error, 4), rel=1e-4)


def test_pictures_are_contrasted_by_two_views():
    config = small(fine=None, coarse=CoarseConfig(projector=8, frequencies=8, contrast=0.3, temperature=0.2))
    method, x = made(config), pictures(6)
    found = numbers(turns(Coarse(method), x)["critic"])
    rng = seeded(7)
    method.prior.sample(6, rng)
    method.frequencies(rng)
    views = [view(x, ViewConfig(), rng) for _ in range(2)]
    with torch.no_grad():
        one, two = (method.projector(torch.tanh(method.encoder(v))) for v in views)
    assert found["contrast"] == pytest.approx(0.3 * nt_xent(one, two, 0.2).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["bits", "mixture", "onehot"])
@pytest.mark.parametrize("projector", [0, 8])
def test_views_pull_on_the_evidence_beside_the_code(kind, projector):
    coarse = CoarseConfig(projector=projector, frequencies=8, contrast=0.3, temperature=0.2, pull=2.0)
    prior = PriorConfig(kind=kind, dim=8, bits=2)
    method, x = made(small(fine=None, prior=prior, coarse=coarse)), pictures(6)
    rng = seeded(7)
    views = [view(x, ViewConfig(), rng) for _ in range(2)]
    evidence = {
        "bits": lambda z: z.view(6, 2, 4).mean(2),
        "mixture": lambda z: z @ method.prior.corners.T,
        "onehot": lambda z: z[:, :4],
    }[kind]
    with torch.no_grad():
        one, two = (torch.tanh(method.encoder(v)) for v in views)
        whole = (one, two) if not projector else (method.projector(one), method.projector(two))
        found = Coarse(method).contrast(x, seeded(7))
    wanted = 0.3 * (nt_xent(*whole, 0.2) + 2 * nt_xent(evidence(one), evidence(two), 0.2))
    torch.testing.assert_close(found, wanted)


def test_codes_are_read_back_under_noise():
    method, x = made(ring(read_noise=0.5)), points(6)
    found = numbers(turns(Coarse(method), x)["critic"])
    rng = seeded(7)
    z, _ = method.prior.sample(6, rng)
    with torch.no_grad():
        fake = method.generator(z)
        again = torch.tanh(method.encoder(fake + 0.5 * torch.randn(fake.shape, generator=rng)))
    assert found["reciprocal"] == pytest.approx(6 * (again - z).square().mean().item(), rel=1e-4)


def test_the_reciprocal_weight_rises_with_the_steps_and_resumes_where_it_was():
    method, x = made(ring(ramp=4)), points(6)
    stage = Coarse(method)
    full = numbers(turns(Coarse(made(ring())), x)["critic"])["reciprocal"]
    seen = []
    for step in range(6):
        if step == 2:
            other = made(ring(ramp=4), seed=1)
            other.load_state_dict(method.state_dict())
            method, stage = other, Coarse(other)
        seen.append(numbers(turns(stage, x)["critic"])["reciprocal"] / full)
        stage.after_step(step)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-4)


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
    torch.testing.assert_close(method.read(x, seeded())["coarse"], torch.tanh(method.encoder(x)))
    with pytest.raises(ValueError, match="encoder alone and generates none"):
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
    optimizer = torch.optim.Adam(method.encoder.parameters(), lr=1e-2)
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


def test_while_the_reciprocal_weight_rises_codes_that_do_not_come_back_are_no_sign():
    method = made(ring(patience=120, ramp=40))
    silenced(method.generator)
    assert until_collapse(Coarse(method), points(32), 200)[0] == 140  # half of the way up, and patience


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_a_collapse_is_found_within_the_recipes_steps(scale):
    made_of = recipe("cofi", scale, DataSpec(spec="scenes", size=32))
    coarse = made_of.config.coarse
    assert coarse.ramp // 2 + coarse.patience < made_of.train.of("coarse").steps


def test_a_step_in_parts_is_watched_as_one():
    """Four micro-batches say what their whole batch says, of sureness and of collapse."""
    found = []
    for parts in (1, 4):
        method = made(ring(patience=20))
        stage = Coarse(method)
        for step in range(30):
            z, code = method.prior.sample(32, seeded(step))
            again = 0.5 * z + 0.1 * torch.randn(z.shape, generator=seeded(1000 + step))
            for some in zip(again.chunk(parts), z.chunk(parts), code.chunk(parts), strict=True):
                stage.watch(some[0], some[0], (some[1], some[2]))
            stage.after_step(step)
        found.append((method.read_back, method.evidence_mean, method.evidence_var))
    for whole, split in zip(*found, strict=True):
        torch.testing.assert_close(whole, split, atol=1e-5, rtol=1e-4)


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
        ValueError, match=r"makes 8 codes, and the pictures to train on are 7: .*set prior.bits to 2 or less"
    ):
        Coarse(method).prepare(given(pictures(7)))


def test_pictures_that_are_all_the_same_have_nothing_to_code():
    same = pictures(1).expand(10, -1, -1, -1).clone()
    with pytest.raises(ValueError, match="10 pictures were looked at and all are the same"):
        Coarse(made(small())).prepare(given(same))
    same[9, 0, 0, 0] += 0.1
    Coarse(made(small())).prepare(given(same))


# ---- modulation (eq. 14)


def modulator(**options):
    given = {"coarse": 6, "fine": 5, "hierarchy": True} | options
    widths = (4, 8, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CodeModulator(widths, given["coarse"], given["fine"], hierarchy=given["hierarchy"])


def flat(pairs):
    return [torch.cat(pair, 1).flatten(1) for pair in pairs]


def test_modulation_is_a_direction_times_a_number_and_what_all_share():
    net = modulator()
    coarse, s = torch.randn(2, 6, generator=seeded()), torch.randn(2, 5, generator=seeded(1))
    scalars = net.scalars(s)
    found, shared = flat(net(coarse, scalars)), flat(net.shared(net.mlp(coarse)))
    start = 0
    for i, width in enumerate((4, 8, 4)):
        axis = net.axes[start : start + 2 * width]
        start += 2 * width
        torch.testing.assert_close(found[i], torch.outer(scalars[:, i], axis) + shared[i])
    assert start == len(net.axes)
    for one, two in zip(flat(net(coarse, None)), shared, strict=True):
        assert torch.equal(one, two)


def test_a_number_moves_its_own_block_alone():
    net = modulator()
    coarse, scalars = torch.randn(2, 6, generator=seeded()), torch.randn(2, 3, generator=seeded(1))
    for i in range(3):
        moved = scalars.clone()
        moved[:, i] += 1.5
        before, after = flat(net(coarse, scalars)), flat(net(coarse, moved))
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
            j == i for j in range(3)
        ]
        assert (after[i] - before[i]).std(0).max() < 1e-6  # along one direction, the same for every picture


def test_numbers_of_a_standard_normal_code_are_standard_normal():
    numbers_ = modulator().scalars(torch.randn(20_000, 5, generator=seeded()))
    for i in range(3):
        assert stats.kstest(numbers_[:, i].detach(), "norm").pvalue > 1e-3


def test_without_hierarchy_one_vector_moves_all_blocks():
    net = modulator(hierarchy=False)
    coarse, scalars = torch.randn(2, 6, generator=seeded()), torch.randn(2, 3, generator=seeded(1))
    moved = scalars.clone()
    moved[:, 1] += 1.5
    assert net.axes is None
    assert all(
        not torch.equal(a, b)
        for a, b in zip(flat(net(coarse, scalars)), flat(net(coarse, moved)), strict=True)
    )
    wanted = flat(net.shared(net.mlp(torch.cat([coarse, scalars], 1))))
    assert all(torch.equal(a, b) for a, b in zip(flat(net(coarse, scalars)), wanted, strict=True))


def test_without_a_fine_code_there_is_the_coarse_one_alone():
    for hierarchy in (True, False):
        net = modulator(fine=0, hierarchy=hierarchy)
        assert net.axes is None
        assert net.to_scalars is None
        assert len(net(torch.zeros(2, 6), None)) == 3


@pytest.mark.parametrize("options", [{}, {"multipliers": (1, 2, 2), "blocks": 2, "middle_attention": True}])
def test_depths_are_named_in_the_order_in_which_blocks_run(options):
    net = made(small(fine=fine(unet=unet(**options)))).fine
    names = {id(net.unet.middle.first.res): "middle.0", id(net.unet.middle.second.res): "middle.1"}
    stages = len(net.unet.encoder.stages)
    for way, module in (("down", net.unet.encoder), ("up", net.unet.decoder)):
        for s, blocks in enumerate(module.stages):
            for b, block in enumerate(blocks):
                names[id(block.res)] = f"{way}{s if way == 'down' else stages - 1 - s}.{b}"
    ran, sides = [], []

    def note(module, given, out):
        ran.append(names[id(module)])
        sides.append(out.shape[-1])

    for module in net.unet.modules():
        if isinstance(module, ResBlock):
            module.register_forward_hook(note)
    net.eps(pictures(2), torch.full((2,), 0.5), torch.zeros(2, 8), torch.zeros(2, len(net.depths)))
    assert tuple(ran) == net.depths
    for name, side in zip(ran, sides, strict=True):
        stage = (
            stages - 1 if name.startswith("middle") else int(name.removeprefix("down").removeprefix("up")[0])
        )
        assert side == 8 // 2**stage


# ---- the stages under codes


class Spy:
    """What a denoiser was asked and said, and what its encoder was shown."""

    def __init__(self, monkeypatch, net):
        self.asked, self.shown = [], []
        eps, posterior = net.eps, net.posterior

        def spied(x_t, t, coarse, scalars):
            said = eps(x_t, t, coarse, scalars)
            self.asked.append([x_t, t, coarse, scalars, said])
            return said

        def showing(x):
            self.shown.append(x)
            return posterior(x)

        monkeypatch.setattr(net, "eps", spied)
        monkeypatch.setattr(net, "posterior", showing)


BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def ddpm_table(t):
    """alpha and sigma of Ho et al.'s 1,000 betas at steps t = (i + 1) / 1000."""
    bar = BAR[np.round(t.double().numpy() * 1000).astype(int) - 1]
    return (torch.tensor(v)[:, None, None, None] for v in (np.sqrt(bar), np.sqrt(1 - bar)))


def one_step(method, stage, x, seed=4):
    batch = Batch(x0=x, derived=stage.derive(x))
    ((player, terms),) = stage.losses(batch, seeded(seed))
    assert player == "denoiser"
    return batch, terms


@pytest.mark.parametrize("clip", [4.0, 0.5])
def test_each_term_of_the_fine_stage_is_its_definition(monkeypatch, clip):
    method = made(small(fine=fine(dropout=0.0, kl=0.2, reciprocal=0.7, reciprocal_until=0.4, clip=clip)))
    net, x = method.fine, pictures(12)
    stage = method.stages()[-1]
    spy = Spy(monkeypatch, net)
    batch, terms = one_step(method, stage, x)
    ((x_t, t, coarse, scalars, said),) = spy.asked
    alpha, sigma = ddpm_table(t)
    clean = batch.derived["clean"].double()
    eps = (x_t.double() - alpha * clean) / sigma
    assert stats.kstest(eps.flatten(), "norm").pvalue > 1e-3
    assert terms["denoise"].item() == pytest.approx(((said.double() - eps) ** 2).mean().item(), rel=1e-4)
    assert torch.equal(coarse, batch.derived["coarse"])

    mean, logvar = net.encoder(x).detach().chunk(2, 1)
    q = dist.Normal(mean, (logvar / 2).exp())
    nats = dist.kl_divergence(q, dist.Normal(0.0, 1.0)).sum(1).mean()
    assert terms["kl"].item() == pytest.approx(0.2 * nats.item(), rel=1e-4)
    assert terms["_nats"].item() == pytest.approx(nats.item(), rel=1e-4)

    unit = net.codes.to_scalars / net.codes.to_scalars.norm(dim=1, keepdim=True)
    s = torch.linalg.lstsq(unit.double(), scalars.double().T).solution.T  # 7 numbers tell 4 entries of s
    x0_hat = ((x_t - sigma * said) / alpha).clamp(-clip, clip)
    first, second = spy.shown
    assert torch.equal(first, batch.derived["clean"])
    near = t < 0.4
    torch.testing.assert_close(
        second.double(), x0_hat[near], atol=1e-3, rtol=1e-3
    )  # of those alone that count
    assert second.abs().max() <= clip
    again = net.encoder(second).detach().chunk(2, 1)[0]
    error = ((s[near] - again) ** 2).mean(1)
    assert 0 < len(error) < 12
    assert terms["reciprocal"].item() == pytest.approx(0.7 * error.mean().item(), rel=1e-3)


def test_a_narrow_posterior_is_not_paid_for_by_the_reciprocal_term():
    """Where pictures do not depend on s, the nearest target would be one that never moves: no gradient leads there."""
    method = made(small(fine=fine(dropout=0.0, kl=0.0, reciprocal_until=0.99)))
    net = method.fine
    net.codes.axes.data.zero_()  # s is not heard
    _, terms = one_step(method, method.stages()[-1], pictures(12))
    assert terms["reciprocal"] > 0
    terms["reciprocal"].backward()
    means, logvars = net.encoder.tail.bias.grad.chunk(2)
    assert not logvars.any()
    assert means.any()


def test_the_fine_stage_may_be_told_a_codes_modes_alone(monkeypatch):
    told = {}
    for share in (0.0, 0.5, 1.0):
        method = made(small(fine=fine(dropout=0.0, redrawn=share)))
        spy = Spy(monkeypatch, method.fine)
        batch, _ = one_step(method, method.stages()[-1], pictures(400))
        told[share] = spy.asked[0][2]
    read, prior = batch.derived["coarse"], method.prior
    mode = prior.means(prior.read(read))
    assert torch.equal(told[0.0], read)
    place = told[1.0] - mode
    assert not torch.allclose(place, read - mode, atol=0.1)
    assert place.std().item() == pytest.approx(prior.config.sigma, rel=0.1)
    half = told[0.5] - mode - 0.5**0.5 * (read - mode)
    torch.testing.assert_close(half, 0.5**0.5 * place, atol=1e-5, rtol=1e-4)  # the same draws


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "v"])
def test_the_fine_stage_weighs_times_as_it_is_told(monkeypatch, weighting):
    method = made(small(fine=fine(dropout=0.0, weighting=weighting)))
    spy = Spy(monkeypatch, method.fine)
    batch, terms = one_step(method, method.stages()[-1], pictures(12))
    x_t, t, _, _, said = spy.asked[0]
    logsnr = method.fine.schedule.logsnr(t)
    alpha, sigma = ddpm_table(t)
    eps = (x_t.double() - alpha * batch.derived["clean"].double()) / sigma
    each = (said.double() - eps).square().flatten(1).mean(1) * weight(logsnr, weighting)
    assert terms["denoise"].item() == pytest.approx(each.mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "zero"), [({"reciprocal_until": 0.0}, True), ({"reciprocal_until": 0.99}, False)]
)
def test_the_reciprocal_term_is_of_clean_times_alone(options, zero):
    method = made(small(fine=fine(**options)))
    _, terms = one_step(method, method.stages()[-1], pictures(12))
    assert (terms["reciprocal"].item() == 0) == zero


def test_without_its_weight_the_reciprocal_term_is_not_computed(monkeypatch):
    method = made(small(fine=fine(reciprocal=0.0)))
    spy = Spy(monkeypatch, method.fine)
    _, terms = one_step(method, method.stages()[-1], pictures(4))
    assert "reciprocal" not in terms
    assert len(spy.shown) == 1


def test_codes_are_dropped_together_as_often_as_asked(monkeypatch):
    method = made(small(fine=fine(dropout=0.3)))
    spy = Spy(monkeypatch, method.fine)
    one_step(method, method.stages()[-1], pictures(400))
    _, _, coarse, scalars, _ = spy.asked[0]
    without = (coarse == 0).all(1)
    assert torch.equal(without, (scalars == 0).all(1))
    assert without.double().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 400))


def test_the_coarse_diffusion_has_the_denoising_term_alone(monkeypatch):
    diffusion = FineConfig(unet=unet(), dropout=0.0)
    method = made(small(fine=None, diffusion=diffusion))
    stage, x = method.stages()[-1], pictures(6)
    asked = []
    eps = method.diffusion.eps
    monkeypatch.setattr(method.diffusion, "eps", lambda *a: asked.append((*a, eps(*a))) or asked[-1][-1])
    _, terms = one_step(method, stage, x)
    x_t, t, coarse, scalars, said = asked[0]
    alpha, sigma = ddpm_table(t)
    noise = (x_t.double() - alpha * x.double()) / sigma
    assert stage.name == "diffusion"
    assert terms.keys() == {"denoise"}
    assert terms["denoise"].item() == pytest.approx(((said.double() - noise) ** 2).mean().item(), rel=1e-4)
    assert scalars is None
    assert torch.equal(coarse, method.encode(x))


def with_autoencoder(**options):
    """Pictures of 16 pixels, latents of 8."""
    latents = AutoencoderConfig(base=8, multipliers=(1, 1), latent_channels=3)
    return made(small(size=16, gan=gan(16), autoencoder=latents, **options))


def test_frozen_parts_run_once_for_a_picture_and_never_in_a_step():
    """What is derived is kept: neither autoencoder nor coarse encoder runs inside the losses."""
    method = with_autoencoder()
    stage, x = method.stages()[-1], pictures(4, 16)
    calls = []
    for part in (method.encoder, method.latents.autoencoder):
        for module in part.modules():
            module.register_forward_hook(lambda m, given, out: calls.append(m))
    assert stage.derives
    batch = Batch(x0=x, derived=stage.derive(x))
    assert calls
    torch.testing.assert_close(batch.derived["coarse"], method.encode(x))
    torch.testing.assert_close(batch.derived["clean"], method.to_latent(x))
    assert not any(v.requires_grad for v in batch.derived.values())
    calls.clear()
    ((_, terms),) = stage.losses(batch, seeded())
    sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    assert not calls
    frozen = [*method.encoder.parameters(), *method.latents.parameters(), *method.generator.parameters()]
    assert all(p.grad is None for p in frozen)
    # and the picture itself is not looked at
    ((_, again),) = stage.losses(Batch(x0=torch.full_like(x, torch.nan), derived=batch.derived), seeded())
    assert all(torch.equal(terms[k], again[k]) for k in terms)


def test_preparing_measures_latents_and_keeps_codes():
    method, x = with_autoencoder(), pictures(40, 16)
    method.stages()[-1].prepare(given(x))
    latents = method.to_latent(x)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert int(method.banked) == 40
    torch.testing.assert_close(method.bank[:40], method.encode(x))


def test_stages_come_in_the_order_in_which_they_need_each_other():
    method = with_autoencoder(diffusion=FineConfig(unet=unet()))
    assert [s.name for s in method.stages()] == ["coarse", "diffusion", "autoencoder", "fine"]
    assert [s.shows for s in method.stages()] == [
        {"grain": "coarse"},
        {"grain": "diffusion"},
        None,
        {"grain": "fine"},
    ]
    assert [s.name for s in made(small(fine=None)).stages()] == ["coarse"]
    assert made(small(fine=None)).stages()[0].shows == {}


# ---- sampling and reading


@pytest.fixture(scope="module")
def both():
    """Coarse and fine on pictures of 8 pixels, its bank filled."""
    method = made(small())
    method.fill_bank(given(pictures(20)))
    return method


FEW = {"num_steps": 3}


@pytest.fixture
def starts(monkeypatch):
    """What samplers were given: (denoise, x_T), and they make it the sample."""
    seen = []

    def spied(denoise, x, levels, schedule, *, rng=None):
        seen.append((denoise, x))
        return x

    monkeypatch.setitem(SAMPLERS, "ddim", spied)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {"bits": "10"},
        {"bits": "11"},
        {"fine": {"up0.0": 2.0}},
        {"codes_from": "noise"},
        {"guidance_scale": 3.0},
    ],
)
def test_a_seed_begins_at_the_same_noise_whatever_is_set(both, starts, options):
    both.sample(3, seeded(5), **FEW)
    both.sample(3, seeded(5), **FEW, **options)
    both.sample(3, seeded(6), **FEW, **options)
    (_, one), (_, two), (_, other) = starts
    assert one.shape == (3, 3, 8, 8)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("grain", ["coarse", "fine"])
@pytest.mark.parametrize("bits", ["00", "01", "10", "11"])
def test_bits_that_were_set_are_those_that_are_read_out(both, grain, bits):
    sample = both.sample(8, seeded(2), **FEW, bits=bits, grain=grain)
    assert sample.controls["bits"] == tuple(map(int, bits))
    assert ((sample.readouts["bits"] > 0.5) == torch.tensor([b == "1" for b in bits])).all()
    segments = sample.readouts["coarse"].view(8, 2, 4).mean(2)  # eq. 6: bit 0 is the positive mode
    assert ((segments < 0) == torch.tensor([b == "1" for b in bits])).all()


def test_other_bits_move_codes_by_whole_modes_and_pictures_of_the_gan_with_them(both):
    base = both.sample(6, seeded(2), bits="00", grain="coarse")
    moved = both.sample(6, seeded(2), bits="01", grain="coarse")
    step = (moved.readouts["coarse"] - base.readouts["coarse"]).view(6, 2, 4)
    torch.testing.assert_close(step[:, 0], torch.zeros(6, 4))
    torch.testing.assert_close(step[:, 1], torch.full((6, 4), -2 * 0.6))
    for sample in (base, moved):
        torch.testing.assert_close(sample.images, both.generator(sample.readouts["coarse"]))


@pytest.mark.parametrize("grain", ["coarse", "fine"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_flip_is_the_other_value_of_that_bit(both, grain, k):
    x = pictures(3, seed=8)
    bits = (both.read(x, seeded())["bits"] > 0.5).long()
    for i in range(3):
        turned = bits[i].clone()
        turned[k - 1] = 1 - turned[k - 1]
        text = "".join(map(str, turned.tolist()))
        options = FEW | {"image": x[i : i + 1], "grain": grain}
        one = both.sample(1, seeded(1), **options, flip=k)
        two = both.sample(1, seeded(1), **options, bits=text)
        torch.testing.assert_close(one.images, two.images)
        assert torch.equal(one.readouts["coarse"], two.readouts["coarse"])
    back = both.sample(3, seeded(1), **FEW, image=x, flip=f"{k},{k}")
    torch.testing.assert_close(back.readouts["coarse"], both.encode(x))


def test_sliders_that_are_not_set_do_not_move(both):
    free = both.sample(4, seeded(2), **FEW).readouts
    one = both.sample(4, seeded(2), **FEW, fine={"down1.0": 1.5, "up0.1": -1.0}).readouts
    names = both.fine.depths
    for i, name in enumerate(names):
        if name in ("down1.0", "up0.1"):
            assert (one["fine"][:, i] == {"down1.0": 1.5, "up0.1": -1.0}[name]).all()
        else:
            assert torch.equal(one["fine"][:, i], free["fine"][:, i])
    assert torch.equal(one["coarse"], free["coarse"])


def test_the_gan_has_no_fine_code_to_read_out(both):
    sample = both.sample(2, seeded(), grain="coarse")
    assert sample.readouts["fine"].isnan().all()
    with pytest.raises(ValueError, match="leave it out, or sample with grain=fine"):
        both.sample(2, seeded(), grain="coarse", fine={"up0.0": 1.0})


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_goes_along_the_line_from_no_codes_to_the_codes(both, starts, scale):
    sample = both.sample(2, seeded(4), **FEW, guidance_scale=scale)
    both.sample(2, seeded(4), **FEW)
    (guided, x), (plain, _) = starts
    t = torch.full((2,), 0.7)
    alpha, sigma = ddpm_table(t)
    codes = sample.readouts["coarse"], sample.readouts["fine"]
    with torch.no_grad():
        x0 = lambda eps: (x - sigma * eps) / alpha
        told = x0(both.fine.eps(x, t, *codes))
        alone = x0(both.fine.eps(x, t, *(torch.zeros_like(c) for c in codes)))
        torch.testing.assert_close(plain(x, t).double(), told, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            guided(x, t).double(), alone + scale * (told - alone), atol=1e-2, rtol=1e-3
        )


def test_guidance_of_one_is_none_and_costs_one_look(both, monkeypatch):
    spy = Spy(monkeypatch, both.fine)
    one = both.sample(2, seeded(4), **FEW, guidance_scale=1.0)
    assert len(spy.asked) == 3
    two = both.sample(2, seeded(4), **FEW)
    assert torch.equal(one.images, two.images)
    spy.asked.clear()
    both.sample(2, seeded(4), **FEW, guidance_scale=1.5)
    assert len(spy.asked) == 6


def test_codes_of_pictures_are_resampled_within_their_modes():
    """Half the way to the mode's middle in variance, half of the prior's noise: the kept bits, every time."""
    method = made(small())
    (kept, _) = method.prior.sample(1, seeded(3), torch.tensor([2]))
    method.bank[0] = kept
    method.banked.fill_(1)
    found = method._coarse_codes(20_000, seeded(), {"codes_from": 0})
    mode = 0.6 * torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    assert (method.prior.read(found) == 2).double().mean() > 0.999
    spread = 0.3 / 2**0.5
    middle = mode + (kept - mode) / 2**0.5
    assert ((found.mean(0) - middle).abs() < 5 * spread / 20_000**0.5 + 1e-3).all()
    torch.testing.assert_close(found.std(0), torch.full((8,), spread), rtol=0.03, atol=0)
    free = method._coarse_codes(4000, seeded(), {"codes_from": 1})
    assert stats.chisquare(np.bincount(method.prior.read(free), minlength=4)).pvalue > 1e-3


def test_codes_come_from_the_pictures_that_were_kept_and_from_no_empty_place():
    method = made(small())
    z, _ = method.prior.sample(20, seeded(), torch.full((20,), 3))
    method.bank[:20] = z
    method.banked.fill_(20)
    sample = method.sample(50, seeded(), grain="coarse", codes_from="pictures")
    assert (method.prior.read(sample.readouts["coarse"]) == 3).all()
    method.banked.fill_(0)  # nothing was kept yet: the prior's
    sample = method.sample(50, seeded(), grain="coarse", codes_from="pictures")
    assert len(method.prior.read(sample.readouts["coarse"]).unique()) == 4


# ---- editing


@pytest.fixture
def solved(both, monkeypatch):
    """The closed-form denoiser of pictures N(m, 0.3^2) whose mean m is told by the codes.

    Its probability flow is known: x_T - m alpha_T goes with x_0 - m, in the ratio of their spreads.
    """

    def mean(coarse, scalars):
        return (0.3 * coarse.view(-1, 2, 4).mean(2).sum(1) + 0.05 * scalars.sum(1))[:, None, None, None]

    def eps(x, t, coarse, scalars):
        alpha, sigma = (v.float() for v in ddpm_table(t))
        return sigma * (x - alpha * mean(coarse, scalars)) / (0.09 * alpha**2 + sigma**2)

    monkeypatch.setattr(both.fine, "eps", eps)
    return mean


def codes_of(method, x):
    with torch.no_grad():
        found = method.read(x, seeded())
    return found["coarse"], found["fine"]


def test_an_edit_that_changes_nothing_gives_the_picture_back(both, solved):
    """Up to what DDIM's steps leave: with two looks each, a quarter of the error with twice the steps."""
    x = 0.3 * pictures(2, seed=8)
    some = {n: both.sample(2, seeded(), image=x, num_steps=n) for n in (50, 100)}
    gap = {n: (sample.images - x).abs().max().item() for n, sample in some.items()}
    assert gap[50] < 0.01
    assert gap[100] / gap[50] == pytest.approx(0.25, rel=0.3)
    torch.testing.assert_close(some[100].readouts["coarse"], codes_of(both, x)[0])
    torch.testing.assert_close(some[100].readouts["fine"], codes_of(both, x)[1])
    again = both.sample(2, seeded(9), image=x, num_steps=50)
    assert torch.equal(again.images, some[50].images)  # nothing is random: the picture is its own noise


def test_an_edit_moves_the_picture_by_what_its_codes_mean(both, solved):
    x = 0.2 * pictures(1, seed=8)
    old = codes_of(both, x)
    for options in ({"flip": 1}, {"fine": {"middle.0": float(old[1][0, 2]) + 1.0}}):
        sample = both.sample(1, seeded(), image=x, num_steps=200, **options)
        moved = solved(sample.readouts["coarse"], sample.readouts["fine"]) - solved(*old)
        assert moved.abs().max() > 0.04
        assert (sample.images - x - moved).abs().max() < 0.02


@pytest.mark.parametrize("grain", ["coarse", "fine"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_a_blend_are_the_two_pictures(both, grain, share):
    x, y = pictures(1, seed=8), pictures(1, seed=9)
    options = FEW | {"grain": grain}
    blended = both.sample(1, seeded(), image=x, blend_with=y, blend=share, **options)
    alone = both.sample(1, seeded(), image=y if share else x, **options)
    torch.testing.assert_close(blended.images, alone.images, atol=1e-4, rtol=1e-4)
    for key in ("coarse", "fine"):
        torch.testing.assert_close(blended.readouts[key], alone.readouts[key], equal_nan=True)


def test_a_blend_mixes_codes_in_a_line_and_keeps_the_noises_variance(both, starts):
    x, y = pictures(1, seed=8), pictures(1, seed=9)
    found = [
        both.sample(1, seeded(), image=x, blend_with=y, blend=share, **FEW).readouts for share in (0, 0.3, 1)
    ]
    one, mixed, two = (start for _, start in starts)
    for key in ("coarse", "fine"):
        torch.testing.assert_close(found[1][key], 0.7 * found[0][key] + 0.3 * found[2][key])
    torch.testing.assert_close(mixed, (0.7 * one + 0.3 * two) / math.sqrt(0.58))


def test_one_picture_serves_for_many_samples_and_many_for_as_many(both):
    x = pictures(2, seed=8)
    three = both.sample(3, seeded(), image=x[:1], **FEW)
    assert torch.allclose(three.images[0], three.images[2], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"the picture is \(2, 3, 8, 8\); expected \(3, 8, 8\), one of them or n = 3"
    ):
        both.sample(3, seeded(), image=x, **FEW)
    with pytest.raises(ValueError, match=r"expected \(3, 8, 8\)"):
        both.sample(1, seeded(), image=pictures(1, 16), **FEW)
    with pytest.raises(ValueError, match="n is 0"):
        both.sample(0, seeded())


def test_controls_that_would_do_nothing_are_refused(both):
    with pytest.raises(
        ValueError, match="guidance_scale is 3, and grain coarse has no steps to guide; leave"
    ):
        both.sample(1, seeded(), grain="coarse", guidance_scale=3.0)
    both.sample(1, seeded(), grain="coarse", guidance_scale=1.0)
    with pytest.raises(
        ValueError, match="codes_from says where codes come from, and here they are those of image"
    ):
        both.sample(1, seeded(), image=pictures(1), codes_from="noise", **FEW)


# ---- reading


def test_a_bit_read_against_its_own_sense_keeps_its_sign():
    method = made(small())
    method.evidence_mean.fill_(-0.05)
    bits = torch.tensor([[0, 1], [1, 1], [1, 0]])
    sure = method.probabilities(method.prior.means(code_of(bits)))["bits"]
    assert ((sure > 0.5) == bits.bool()).all()
    torch.testing.assert_close(sure, torch.full((3, 2), 0.5), atol=0.01, rtol=0)


def test_reading_says_both_codes(both):
    x = pictures(5)
    found = both.read(x, seeded())
    torch.testing.assert_close(found["coarse"], torch.tanh(both.encoder(x)))
    mean = both.fine.encoder(x).chunk(2, 1)[0]
    unit = both.fine.codes.to_scalars / both.fine.codes.to_scalars.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found["fine"], mean @ unit.T)
    assert both.readouts["fine"].names == both.fine.depths


def test_how_sure_a_reading_is_is_how_often_it_is_right():
    """Evidence of two Gaussians: probabilities are Bayes', so their mean sureness is the accuracy."""
    method = made(ring())
    method.evidence_mean.copy_(torch.tensor([0.3, 0.1]))
    method.evidence_var.copy_(torch.tensor([0.04, 0.09]))
    n = 40_000
    bits = torch.randint(2, (n, 2), generator=seeded())
    noise = torch.randn(n, 2, generator=seeded(1)) * method.evidence_var.sqrt()
    evidence = (1 - 2 * bits) * method.evidence_mean + noise
    p = method.probabilities(evidence.repeat_interleave(4, 1))["bits"].double()
    for k, (mean, spread) in enumerate([(0.3, 0.2), (0.1, 0.3)]):
        of = lambda m, k=k, spread=spread: stats.norm.pdf(evidence[:, k].numpy(), m, spread)
        assert np.allclose(p[:, k], of(-mean) / (of(mean) + of(-mean)), atol=1e-5)
        right = ((p[:, k] > 0.5) == (bits[:, k] == 1)).double()
        sure = torch.maximum(p[:, k], 1 - p[:, k])
        assert (sure - right).mean().item() == pytest.approx(0, abs=4 * (sure - right).std().item() / n**0.5)
        assert right.mean().item() == pytest.approx(stats.norm.cdf(mean / spread), abs=0.01)
        for low in (0.5, 0.6, 0.8):  # and within each range of sureness
            held = (sure >= low) & (sure < low + 0.15)
            assert (sure - right)[held].mean().item() == pytest.approx(0, abs=2.5 / held.sum().item() ** 0.5)


def test_the_evidence_is_measured_on_generated_pictures_as_training_goes():
    method = made(ring(patience=10**6))
    stage = Coarse(method)
    for step in range(700):
        z, code = method.prior.sample(64, seeded(step))
        noise = 0.4 * torch.randn(z.shape, generator=seeded(10_000 + step))
        stage.watch(z, 0.5 * method.prior.means(code) + noise, (z, code))
        stage.after_step(step)
    torch.testing.assert_close(method.evidence_mean, torch.full((2,), 0.3), atol=0.01, rtol=0)
    torch.testing.assert_close(method.evidence_var, torch.full((2,), 0.16 / 4), atol=0.004, rtol=0)


@pytest.mark.parametrize("kind", ["mixture", "onehot"])
def test_other_priors_have_one_code(kind):
    method = made(small(prior=PriorConfig(kind=kind, dim=8, bits=2)))
    assert "bits" not in method.controls
    assert "flip" not in method.controls
    for code in range(4):
        sample = method.sample(5, seeded(), **FEW, code=code)
        assert (sample.readouts["code"].argmax(1) == code).all()
        torch.testing.assert_close(sample.readouts["code"].sum(1), torch.ones(5))


# ---- what cannot be


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reciprocal": -1.0}, "reciprocal is -1.0; 0 or more"),
        ({"contrast": -1.0}, "contrast is -1.0; 0 or more"),
        ({"amplitude": 1.5}, "amplitude is 1.5; a share"),
        ({"frequencies": 1}, "frequencies is 1"),
        ({"patience": 0}, "patience 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"adversarial": False, "contrast": 0.0}, "nothing would train the encoder"),
    ],
)
def test_coarse_stages_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        CoarseConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"kl": -1.0}, "kl is -1.0; 0 or more"),
        ({"reciprocal": -1.0}, "reciprocal is -1.0; 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"reciprocal_until": -0.1}, "reciprocal_until is -0.1"),
        ({"redrawn": 1.5}, "redrawn is 1.5; a share, 0 to 1"),
        ({"clip": 0.0}, "clip is 0.0"),
    ],
)
def test_fine_stages_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        fine(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gan": gan(16)}, "gan is for 3 channels at size 16; the pictures have 3 at 8"),
        ({"fine": FineConfig(unet=unet())}, "fine has no encoder"),
        ({"diffusion": fine()}, "diffusion has an encoder"),
        ({"fine": fine(unet=unet(channels=1))}, "fine.unet.channels is 1; what it diffuses has 3"),
        ({"diffusion": FineConfig(unet=unet(channels=4))}, "diffusion.unet.channels is 4"),
        ({"fine": fine(unet=unet(multipliers=(1,) * 5))}, "fine.unet halves the size 4 times"),
        (
            {"fine": fine(encoder=gan(16))},
            "fine.encoder is for 3 channels at size 16; what it sees has 3 at 8",
        ),
        ({"fine": fine(encoder=gan(8, 1))}, "fine.encoder is for 1 channels at size 8"),
        (
            {"autoencoder": AutoencoderConfig(channels=1)},
            "autoencoder is for 1 channels; the pictures have 3",
        ),
        (
            {"autoencoder": AutoencoderConfig(multipliers=(1,) * 5)},
            "autoencoder makes pictures 16 times smaller, and theirs have 8 a side",
        ),
    ],
)
def test_methods_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        small(**wrong)


# ---- through the engine


@pytest.mark.parametrize(("name", "stages"), [("cofi", 3), ("cofi-coarse", 2)])
def test_a_run_stopped_in_each_stage_and_at_their_borders_is_the_run_left_alone(tmp_path, name, stages):
    made = recipe(name, "tiny", DataSpec(spec="scenes", size=16), steps=4, batch_size=4, checkpoint_every=50)
    data = Scenes(size=16, length=12)
    end = {}
    for way, stop_after in (("alone", None), ("stopped", 3)):
        for _ in range(5):
            method = build(made)
            outcome = train(
                method, data, made.train, tmp_path / way, meta=recipe_to_json(made), stop_after=stop_after
            )
            if outcome.state == "done":
                break
        assert (outcome.state, outcome.step) == ("done", 4 * stages)
        end[way] = [latest(tmp_path / way).tensors(part) for part in ("model", "ema", "optim")]
    for one, other in zip(end["alone"], end["stopped"], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
