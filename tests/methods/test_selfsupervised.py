"""Self-guided diffusion and instance-conditioned GANs: what their features are told, and what comes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from pellucid.methods.baselines.icgan import ICGAN, ICGANConfig, ProjectionDiscriminator
from pellucid.methods.baselines.selfguided import SelfGuided, SelfGuidedConfig
from pellucid.methods.baselines.selfsupervised import ContrastConfig
from pellucid.methods.priors import PriorConfig
from pellucid.nets.gan import GANConfig
from pellucid.nets.unet import UNetConfig
from pellucid.types import Batch

ENCODER = GANConfig(size=8, channels=3, base=8, most=2, attention=0)
CONTRAST = ContrastConfig(encoder=ENCODER, dim=6, projector=6)
UNET = UNetConfig(base=8, multipliers=(1, 2), blocks=1, middle_attention=False)
GUIDED = SelfGuidedConfig(size=8, bits=1, contrast=CONTRAST, unet=UNET)
INSTANCES = ICGANConfig(
    size=8, gan=ENCODER, prior=PriorConfig(kind="mixture", dim=4, bits=2), contrast=CONTRAST, bank=32, neighbours=3
)  # fmt: skip


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Brightness(torch.nn.Module):
    """A feature that is known: pictures by their mean, as an angle."""

    def forward(self, x):
        angle = x.mean((1, 2, 3))
        return torch.stack([angle.cos(), angle.sin(), *[torch.zeros_like(angle)] * 4], 1)

    def of(self, pictures, n, least, what):
        return torch.cat([self(part) for part in pictures(n)])[:n]


def two_kinds(n: int = 24) -> torch.Tensor:
    """Pictures that are dark, and as many that are bright, in turns."""
    level = torch.tensor([-0.7, 0.7]).repeat(n // 2).view(n, 1, 1, 1)
    return level + 0.1 * torch.randn(n, 3, 8, 8, generator=gen())


def guided() -> SelfGuided:
    torch.manual_seed(0)
    method = SelfGuided(GUIDED)
    for p in method.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen(1))
    method.features = Brightness()
    return method


def test_features_have_length_one_and_depend_on_their_picture_alone():
    torch.manual_seed(0)
    features = ICGAN(INSTANCES).features
    x = two_kinds()
    found = features(x)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(found, torch.cat([features(one) for one in x.split(1)]), atol=1e-5, rtol=1e-4)


def test_contrast_teaches_features_to_tell_pictures_apart():
    """After some steps a picture is nearer to its own view than before, measured against other pictures."""
    torch.manual_seed(0)
    method = SelfGuided(GUIDED)
    (contrast, _) = method.stages()
    x = torch.rand(16, 3, 1, 1, generator=gen()) * 2 - 1 + 0.1 * torch.randn(16, 3, 8, 8, generator=gen(1))
    optimizer = torch.optim.Adam(contrast.players["encoder"], lr=3e-3)
    seen = []
    for step in range(40):
        ((_, terms),) = contrast.losses(Batch(x0=x), gen(step))
        optimizer.zero_grad()
        terms["contrast"].backward()
        optimizer.step()
        seen.append(terms["contrast"].item())
    assert sum(seen[-5:]) / 5 < sum(seen[:5]) / 5 - 0.2


def test_clusters_are_the_kinds_of_pictures_there_are():
    method = guided()
    denoise = method.stages()[1]
    denoise.prepare(lambda n: two_kinds().split(8))
    kind = torch.arange(24) % 2
    cluster = denoise.derive(two_kinds())["cluster"]
    assert torch.equal(cluster, kind) or torch.equal(cluster, 1 - kind)
    read = method.eval().read(two_kinds(), gen())["code"]
    assert torch.equal(read.argmax(1), cluster)


def test_as_many_pictures_as_were_asked_for_are_told_no_cluster():
    """What the network is told: the picture's own cluster, or the null class, K."""
    method = guided()
    method.config = replace(GUIDED, dropout=0.3)
    told: Counter = Counter()
    predict = method.predict

    def spied(x, t, label=None, use={}):  # noqa: B006
        told.update(label.tolist())
        return predict(x, t, label, use)

    method.predict = spied
    batch = Batch(x0=two_kinds(), derived={"cluster": torch.ones(24, dtype=torch.int64)})
    for step in range(40):
        list(method.stages()[1].losses(batch, gen(step)))
    assert set(told) == {1, 2}
    assert told[2] / told.total() == pytest.approx(0.3, abs=0.05)


def test_guidance_of_nought_is_no_cluster_and_a_given_picture_keeps_its_own():
    method = guided().eval()
    method.stages()[1].prepare(lambda n: two_kinds().split(8))
    by = lambda **controls: method.sample(3, gen(5), num_steps=2, **controls).images
    torch.testing.assert_close(by(code=0, guidance_scale=0.0), by(code=1, guidance_scale=0.0))
    assert not torch.allclose(by(code=0), by(code=1))
    picture = two_kinds()[:1]
    own = int(method.read(picture, gen())["code"].argmax())
    same = method.sample(1, gen(5), num_steps=2, image=picture, strength=0.5).images
    for code in (0, 1):
        told = method.sample(1, gen(5), num_steps=2, image=picture, strength=0.5, code=code).images
        assert torch.equal(told, same) == (code == own)


def instanced() -> ICGAN:
    torch.manual_seed(0)
    method = ICGAN(INSTANCES)
    method.features = Brightness()
    return method


def test_codes_are_training_pictures_and_are_read_as_themselves():
    method = instanced().eval()
    level = torch.tensor([-1.0, -0.4, 0.3, 0.9]).repeat_interleave(8)
    pictures = level.view(32, 1, 1, 1).expand(-1, 3, 8, 8) + 0.02 * torch.randn(32, 3, 8, 8, generator=gen())
    method.stages()[1].prepare(lambda n: pictures.split(8))
    assert int(method.banked) == 32
    # each code's feature is that of one of the pictures, and there is one for each of the four kinds
    distance = torch.cdist(method.prior.features, method.features(pictures))
    own = distance.argmin(1)
    torch.testing.assert_close(distance.min(1).values, torch.zeros(4), atol=1e-3, rtol=0)
    assert set((own // 8).tolist()) == {0, 1, 2, 3}
    assert torch.equal(method.read(pictures[own], gen())["code"].argmax(1), torch.arange(4))
    z, code = method.prior.sample(4, gen(), torch.arange(4))
    torch.testing.assert_close(z[:, 4:], method.prior.features)
    assert torch.equal(method.prior.read(z), code)


def test_a_picture_stands_under_one_of_its_nearest_instances():
    method = instanced()
    angle = torch.linspace(0, 3, 32)
    method.bank.copy_(torch.stack([angle.cos(), angle.sin(), *[torch.zeros(32)] * 4], 1))
    method.banked.fill_(32)
    seen = set()
    for seed in range(30):
        near = method.instances_near(method.bank[10:11], gen(seed))
        seen.add(int(torch.cdist(near, method.bank).argmin()))
    assert seen == {9, 10, 11}


def test_a_projection_is_linear_in_what_it_is_conditioned_on():
    torch.manual_seed(0)
    net = ProjectionDiscriminator(ENCODER, 6)
    x, a, b = two_kinds(4), torch.randn(4, 6, generator=gen(1)), torch.randn(4, 6, generator=gen(2))
    mixed = net.under(x, 0.25 * a + 0.75 * b)
    torch.testing.assert_close(mixed, 0.25 * net.under(x, a) + 0.75 * net.under(x, b))
    # with nothing to embed it is the plain judgement
    for p in net.embed.parameters():
        torch.nn.init.zeros_(p)
    torch.testing.assert_close(net.under(x, a), net(x)[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: replace(GUIDED, bits=0), "bits is 0"),
        (lambda: replace(GUIDED, dropout=1.0), "dropout"),
        (lambda: replace(GUIDED, size=16), "size"),
        (lambda: replace(INSTANCES, bank=3), "bank 3"),
        (lambda: replace(INSTANCES, neighbours=0), "neighbours is 0"),
        (lambda: replace(CONTRAST, dim=1), "dim is 1"),
        (
            lambda: replace(CONTRAST, encoder=GANConfig(kind="mlp", size=1, channels=2)),
            "points have no views",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        change()


def test_fewer_pictures_than_codes_are_refused():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="3 pictures for 4 instances"):
        ICGAN(INSTANCES).stages()[1].prepare(lambda n: iter([two_kinds()[:3]]))
    with pytest.raises(ValueError, match="1 pictures for 2 clusters"):
        SelfGuided(GUIDED).stages()[1].prepare(lambda n: iter([two_kinds()[:1]]))
