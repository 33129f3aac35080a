"""The label-free conditional GANs: games and penalties in closed form, clusters against scikit-learn, resumption."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.cluster import KMeans

from pellucid.methods.baselines.adversarial import (
    Discriminator,
    GameConfig,
    between,
    passing,
    steepness,
    telling_apart,
)
from pellucid.methods.baselines.clustergan import ClusterGAN, ClusterGANConfig
from pellucid.methods.baselines.infogan import InfoGAN, InfoGANConfig
from pellucid.methods.baselines.mic import MIC, LearnedMixture, MICConfig
from pellucid.methods.baselines.selfcond import SelfCond, SelfCondConfig, moved_centroids, nearest
from pellucid.methods.priors import PriorConfig
from pellucid.nets.gan import GANConfig
from pellucid.types import Batch

POINTS = GANConfig(kind="mlp", size=1, channels=2, base=16)
PICTURES = GANConfig(size=8, channels=3, base=8, most=2, attention=4)
ONE_HOT = PriorConfig(kind="onehot", dim=8, bits=2)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 1, 1, generator=gen(seed))


def of_points(kind, config, **options):
    torch.manual_seed(0)
    prior = PriorConfig(kind=config.codes_are, dim=8, bits=2)
    return kind(config(size=1, channels=2, prior=prior, gan=POINTS, **options))


METHODS = {
    "clustergan": (ClusterGAN, ClusterGANConfig),
    "infogan": (InfoGAN, InfoGANConfig),
    "mic": (MIC, MICConfig),
    "selfcond": (SelfCond, SelfCondConfig),
}


# ---- games and penalties ----------------------------------------------------------------------


def test_the_logistic_game_is_cross_entropy_and_at_its_optimum_the_jensen_shannon_divergence():
    """Two densities p, q over three places; the best judgement is log p/q, and its loss 2 log 2 - 2 JSD."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
    best = (p / q).log()
    loss = sum(
        weight * telling_apart(d[None], d[None], "logistic")[side]
        for weights, side in ((p, "real"), (q, "fake"))
        for weight, d in zip(weights, best, strict=True)
    )
    middle = (p + q) / 2
    jsd = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    torch.testing.assert_close(loss, 2 * math.log(2) - 2 * jsd)


def test_games_at_known_judgements():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])
    hinge = telling_apart(real, fake, "hinge")
    assert hinge["real"].item() == pytest.approx((0.5 + 0) / 2)
    assert hinge["fake"].item() == pytest.approx((0 + 2.0) / 2)
    wasserstein = telling_apart(real, fake, "wasserstein")
    assert (wasserstein["real"] + wasserstein["fake"]).item() == pytest.approx(-1.25 - 1.0)
    assert passing(fake, "hinge").item() == passing(fake, "wasserstein").item() == pytest.approx(1.0)
    # the non-saturating loss: -log of the probability that the discriminator gives
    assert passing(fake, "logistic").item() == pytest.approx(float(-torch.sigmoid(fake).log().mean()))


def test_steepness_of_a_quadratic_form_is_known():
    x = points(5).requires_grad_()
    a = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    flat = x.flatten(1)
    judged = 0.5 * (flat @ a * flat).sum(1)
    found = steepness(judged, x)
    torch.testing.assert_close(found, (flat @ a).square().sum(1))
    (again,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(again.flatten(1), 2 * flat @ a @ a)


def test_between_lies_on_the_line_and_not_at_one_place():
    real, fake = points(64), points(64, 1)
    mixed = between(real, fake, gen())
    share = ((mixed - real) / (fake - real)).flatten(1)
    torch.testing.assert_close(share[:, 0], share[:, 1], atol=1e-3, rtol=1e-3)
    assert share.min() > -1e-3
    assert share.max() < 1.001
    assert share[:, 0].std() > 0.2


@pytest.mark.parametrize("penalty", ["r1", "interpolated"])
def test_the_penalty_is_that_of_the_gradients_by_finite_differences(penalty):
    game = GameConfig(penalty=penalty, penalty_weight=3.0)
    method = of_points(InfoGAN, InfoGANConfig, game=game).double()
    x, fake = points().double().requires_grad_(), points(seed=1).double()
    got = method.penalty(method.discriminator(x)[0], x, fake, gen())
    at = (x if penalty == "r1" else between(x, fake, gen())).detach()
    step = 1e-5
    slopes = []
    for axis in range(2):
        move = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
        move[0, axis] = step
        with torch.no_grad():
            up, down = (
                method.discriminator.trunk(at + move)[:, 0],
                method.discriminator.trunk(at - move)[:, 0],
            )
        slopes.append((up.double() - down.double()) / (2 * step))
    square = torch.stack(slopes).square().sum(0)
    want = 1.5 * square.mean() if penalty == "r1" else 3.0 * (square.sqrt() - 1).square().mean()
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-5)


def test_a_penalty_reaches_every_weight_of_a_discriminator_of_pictures():
    """Through norms and attention, which have no second derivative in their fast forms."""
    torch.manual_seed(0)
    net = Discriminator(PICTURES, answers=3)
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen())
    x = torch.randn(4, 3, 8, 8, generator=gen()).requires_grad_()
    steepness(net(x)[0], x).mean().backward()
    silent = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["trunk.tail.bias"] or not silent


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "wasserstein"},
        {"loss": "wasserstein", "penalty": "interpolated", "penalty_weight": 0.0},
        {"penalty_weight": -1.0},
        {"critic_steps": 0},
    ],
)
def test_games_that_cannot_be_played_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GameConfig(**options)


# ---- methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("game", [GameConfig(), GameConfig(loss="hinge", penalty_weight=0.0, critic_steps=2)])
def test_players_move_in_turn_and_only_their_own_losses_are_theirs(name, game):
    method = of_points(*METHODS[name], game=game)
    (stage,) = method.stages()
    stage.prepare(lambda n: iter([points(32, 5)]))
    turns = [player for player, _ in stage.losses(Batch(x0=points()), gen())]
    assert turns == ["discriminator"] * game.critic_steps + ["generator"]


@pytest.mark.parametrize("name", METHODS)
def test_a_set_code_is_the_sample_that_a_random_one_would_be(name):
    """Setting the code changes the code: the noise is the same."""
    method = of_points(*METHODS[name]).eval()
    free = method.sample(32, gen(3))
    code = free.readouts["code"].argmax(1)
    assert set(code.tolist()) == {0, 1, 2, 3}
    for k in range(4):
        told = method.sample(32, gen(3), code=k)
        assert torch.equal(told.images[code == k], free.images[code == k])
        assert not torch.equal(told.images[code != k], free.images[code != k])
        assert (told.readouts["code"].argmax(1) == k).all()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_picture_is_read_as_does_not_depend_on_its_batch(name):
    method = of_points(*METHODS[name]).eval()
    if name == "selfcond":
        method.stages()[0].prepare(lambda n: iter([points(32, 5)]))
    x = points()
    together = method.read(x, gen())["code"]
    torch.testing.assert_close(together, torch.cat([method.read(one, gen())["code"] for one in x.split(1)]))


def test_codes_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="mixture"):
        InfoGANConfig(size=1, channels=2, prior=PriorConfig(kind="mixture", dim=8, bits=2), gan=POINTS)
    with pytest.raises(ValueError, match="onehot"):
        MICConfig(size=1, channels=2, prior=ONE_HOT, gan=POINTS)
    with pytest.raises(ValueError, match="noise needs some"):
        InfoGANConfig(size=1, channels=2, prior=PriorConfig(kind="onehot", dim=4, bits=2), gan=POINTS)


def test_clustergan_reads_noise_and_code_from_their_own_entries():
    """An encoder that says the latent vector itself has no loss of the noise, and one of its code that is known."""
    method = of_points(ClusterGAN, ClusterGANConfig, noise_weight=2.0, code_weight=3.0)
    z, _ = method.latents(16, gen(7))

    class Oracle(torch.nn.Module):
        """Says the latent vector itself, the noise off by so much."""

        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, x):
            return torch.cat([z[:, :4], z[:, 4:] + self.shift], 1)

    method.latents = lambda n, rng: (z, z[:, :4].argmax(1))
    for shift in (0.0, 0.5):
        method.encoder = Oracle(shift)
        *_, (player, terms) = method.stages()[0].losses(Batch(x0=points()), gen())
        assert player == "generator"
        assert terms["noise"].item() == pytest.approx(2.0 * shift**2, abs=1e-6)
        assert terms["code"].item() == pytest.approx(3.0 * math.log(1 + 3 / math.e), rel=1e-5)
        assert terms["_read_back"].item() == 1


# ---- a learned mixture ------------------------------------------------------------------------


def test_a_learned_mixture_has_the_likelihoods_and_entropy_of_its_gaussians():
    prior = LearnedMixture(PriorConfig(kind="mixture", dim=6, bits=2))
    with torch.no_grad():
        prior.mean.add_(torch.randn(4, 6, generator=gen()))
        prior.log_sigma.add_(0.5 * torch.randn(4, 6, generator=gen(1)))
    normal = torch.distributions.Normal(prior.mean, prior.log_sigma.exp())
    z = torch.randn(10, 6, generator=gen(2))
    want = normal.log_prob(z[:, None]).sum(2).log_softmax(1)
    torch.testing.assert_close(prior.log_likelihoods(z).log_softmax(1), want)
    assert prior.entropy == pytest.approx(
        math.log(4) + float(normal.entropy().detach().sum(1).mean()), rel=1e-6
    )


def test_samples_of_a_learned_mixture_have_its_moments_and_teach_it():
    prior = LearnedMixture(PriorConfig(kind="mixture", dim=3, bits=1))
    with torch.no_grad():
        prior.mean[1], prior.log_sigma[1] = (
            torch.tensor([1.0, -2.0, 0.5]),
            torch.tensor([0.1, 1.0, 0.4]).log(),
        )
    z, code = prior.sample(20_000, gen(), torch.ones(20_000, dtype=torch.int64))
    torch.testing.assert_close(z.mean(0), prior.mean[1], atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), prior.log_sigma[1].exp(), atol=0.02, rtol=0)
    z.sum().backward()
    # z = mean + sigma eps: its gradient by the mean is 1 for each sample, and none reaches the other mode
    torch.testing.assert_close(prior.mean.grad, torch.tensor([[0.0] * 3, [20_000.0] * 3]))
    eps = (z - prior.mean[1]) / prior.log_sigma[1].exp()
    want = (prior.log_sigma[1].exp() * eps).sum(0)
    torch.testing.assert_close(prior.log_sigma.grad[1], want, rtol=1e-3, atol=1e-2)
    assert (code == 1).all()


# ---- clusters ---------------------------------------------------------------------------------


def test_centroids_move_as_in_scikit_learn():
    x = torch.randn(300, 5, generator=gen()).double()
    start = x[:6].clone()
    ours = moved_centroids(x, start, 100)
    theirs = KMeans(6, init=start.numpy(), n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(x.numpy())
    torch.testing.assert_close(ours, torch.from_numpy(theirs.cluster_centers_), atol=1e-8, rtol=0)
    assert torch.equal(nearest(x, ours), torch.from_numpy(theirs.labels_).long())


def test_a_centroid_that_nothing_is_near_takes_a_point_of_its_own():
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    moved = moved_centroids(x, torch.tensor([[0.0], [100.0]]), 3)
    torch.testing.assert_close(moved.sort(0).values, torch.tensor([[0.05], [5.05]]))


def test_a_cluster_keeps_its_number():
    """The same clusters from centroids in another order, moved a little: each keeps its place in the order."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    x = (centres[:, None] + 0.1 * torch.randn(3, 50, 2, generator=gen())).flatten(0, 1)
    for order in ([2, 0, 1], [1, 2, 0]):
        moved = moved_centroids(x, centres[order] + 0.5, 5)
        torch.testing.assert_close(moved, centres[order], atol=0.1, rtol=0)


def test_features_are_kept_the_latest_first_to_last():
    method = of_points(SelfCond, SelfCondConfig, kept=10)
    rows = torch.arange(23.0)[:, None].expand(-1, 16)
    for part in rows.split(4):
        method.remember(part)
    assert sorted(method.kept[:, 0].tolist()) == list(map(float, range(13, 23)))


def test_clusters_are_found_anew_every_so_often_and_codes_drawn_as_often_as_they_are_there():
    method = of_points(SelfCond, SelfCondConfig, every=3, kept=64)
    (stage,) = method.stages()
    stage.prepare(lambda n: iter([points(64, 5)]))
    seen = []
    for step in range(6):
        before = method.centroids.clone()
        for _ in stage.losses(Batch(x0=points(16, step)), gen()):
            pass
        stage.after_step(step)
        seen.append(not torch.equal(before, method.centroids))
    assert seen == [False, False, True, False, False, True]
    with torch.no_grad():
        method.shares.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    code = method.drawn(2000, gen())
    share = torch.bincount(code, minlength=4) / 2000
    torch.testing.assert_close(share, method.shares, atol=0.05, rtol=0)


def test_a_self_conditioned_run_continues_from_its_state_bit_for_bit():
    """Everything that clusters depend on is in the state: six steps, or two, a copy, and four."""

    def stepped(method, steps):
        (stage,) = method.stages()
        for step in steps:
            for player, terms in stage.losses(Batch(x0=points(16, step)), gen(step)):
                loss = sum(v for k, v in terms.items() if not k.startswith("_"))
                grads = torch.autograd.grad(loss, stage.players[player])
                with torch.no_grad():
                    for p, g in zip(stage.players[player], grads, strict=True):
                        p -= 0.01 * g
            stage.after_step(step)
        return method

    made = lambda: of_points(SelfCond, SelfCondConfig, every=3, kept=40)
    whole = made()
    whole.stages()[0].prepare(lambda n: iter([points(40, 5)]))
    begun = made()
    begun.load_state_dict(whole.state_dict())
    stepped(whole, range(6))
    stepped(begun, range(2))
    other = made()
    other.load_state_dict(begun.state_dict())
    stepped(other, range(2, 6))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_too_few_pictures_for_the_clusters_are_refused():
    method = of_points(SelfCond, SelfCondConfig)
    with pytest.raises(ValueError, match="3 pictures for 4 clusters"):
        method.stages()[0].prepare(lambda n: iter([points(3)]))
    with pytest.raises(ValueError, match="kept is 3"):
        SelfCondConfig(size=1, channels=2, prior=ONE_HOT, gan=POINTS, kept=3)
