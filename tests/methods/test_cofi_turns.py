"""What CoFi's losses leave out of a step, because nothing comes of it, changes nothing of what is learned."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from pellucid.methods.cofi import coarse as coarse_module
from pellucid.methods.cofi.method import CoFi
from pellucid.process.loss import diffuse
from pellucid.process.predict import to_x0
from pellucid.recipes import DataSpec, build, recipe
from pellucid.types import Batch


def method(**fine) -> CoFi:
    made = recipe("cofi", "tiny", DataSpec(spec="scenes", size=16))
    found = build(replace(made, config=replace(made.config, fine=replace(made.config.fine, **fine))))
    rng = torch.Generator().manual_seed(2)
    for p in found.parameters():  # what starts at zero would hide what lies before it
        if not p.any():
            p.data.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return found


def turns(made: CoFi) -> dict[str, dict[str, torch.Tensor]]:
    """Every parameter's gradient in the turn of each player of the coarse stage."""
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for player, terms in made.stages()[0].losses(Batch(x0=x), torch.Generator().manual_seed(1)):
        sum(v for k, v in terms.items() if not k.startswith("_")).backward()
        found[player] = {k: p.grad.clone() for k, p in made.named_parameters() if p.grad is not None}
        made.zero_grad()
    return found


def test_the_generator_learns_the_same_from_a_critic_that_gets_no_gradient(monkeypatch):
    spared = turns(method())
    monkeypatch.setattr(coarse_module, "frozen", lambda network: nullcontext())
    whole = turns(method())
    owned = {k for k in whole["generator"] if k.startswith("generator.")}
    assert set(spared["generator"]) == owned < set(whole["generator"])
    assert all(torch.equal(spared["generator"][k], whole["generator"][k]) for k in owned)
    assert any(k.startswith("encoder.") for k in spared["critic"]), "it is frozen in the other's turn alone"


@pytest.mark.parametrize("until", [0.0, 0.5])
def test_reciprocal_term_is_the_mean_over_samples_that_count(until):
    made = method(reciprocal_until=until, kl=0.0, reciprocal=1.0, dropout=0.3)
    (stage,) = [s for s in made.stages() if s.name == "fine"]
    net, rng = stage.denoiser, torch.Generator().manual_seed(0)
    clean = torch.randn(16, *net.shape, generator=rng)
    net.fit(lambda n: iter([clean]))
    batch = Batch(
        x0=torch.zeros(16, 3, 16, 16),
        derived={"clean": clean, "coarse": torch.randn(16, made.prior.dim, generator=rng).tanh()},
    )
    ((_, terms),) = stage.losses(batch, torch.Generator().manual_seed(1))

    # the same draws in the same order, every sample encoded again, and those that do not count weighed with 0
    rng = torch.Generator().manual_seed(1)
    t = net.training_times(16, rng)
    logsnr = net.schedule.logsnr(t)
    eps = torch.randn(clean.shape, generator=rng)
    told = (torch.rand(16, generator=rng) >= 0.3).float()[:, None]
    mean, logvar = net.posterior(clean)
    s = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=rng)
    x_t = diffuse(clean, eps, logsnr)
    found = net.eps(x_t, t, told * batch.derived["coarse"], told * net.codes.scalars(s))
    again, _ = net.posterior(to_x0(found, x_t, logsnr, "eps").clamp(-4, 4))
    counts = told[:, 0] * (t < until)
    expected = ((s - again).square().mean(1) * counts).sum() / counts.sum().clamp(min=1)
    torch.testing.assert_close(terms["reciprocal"], expected, rtol=1e-4, atol=1e-6)
    assert (expected.item() > 0) == (until > 0)
    terms["reciprocal"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
