"""PDAE: what its loss weighs, that the denoiser it shifts stays as it is, and that any such DDPM will do for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pellucid.methods.baselines.pdae import PDAE, PDAEConfig, shift_weight
from pellucid.nets.resnet import ResNetConfig
from pellucid.nets.unet import UNetConfig
from pellucid.process.loss import diffuse
from pellucid.process.samplers import SAMPLERS
from pellucid.process.schedule import alpha_sigma, expand
from pellucid.train.checkpoint import load_weights
from pellucid.train.log import read_log
from pellucid.types import Batch

CONFIG = PDAEConfig(
    size=8,
    unet=UNetConfig(base=8, multipliers=(1, 2), blocks=1, middle_attention=False),
    encoder=ResNetConfig(base=8, multipliers=(1, 2), blocks=(1, 2), attention=(0, 1)),
    dim=6,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=gen(7)) * 2 - 1


def made(config: PDAEConfig = CONFIG, *, loud: bool = False) -> PDAE:
    """A method; `loud` moves every weight, as what begins at zero would hide what it does."""
    torch.manual_seed(0)
    method = PDAE(config)
    if loud:
        for p in method.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=gen(1))
    return method


def loss_of(method: PDAE, stage: int, seed: int = 0) -> torch.Tensor:
    ((_, terms),) = method.stages()[stage].losses(Batch(x0=pictures()), gen(seed))
    return sum(v for k, v in terms.items() if not k.startswith("_"))


def test_the_weight_is_the_papers():
    snr = torch.tensor([1e-4, 0.1, 1.0, 9.0, 1e4], dtype=torch.float64)
    for gamma in (0.0, 0.1, 0.5, 1.0):
        wanted = (1 / (1 + snr)) ** (1 - gamma) * (snr / (1 + snr)) ** gamma
        torch.testing.assert_close(shift_weight(snr.log(), gamma), wanted)
    assert shift_weight(torch.zeros(()), 0.1).item() == pytest.approx(0.5)
    assert shift_weight(torch.tensor(9.0).log(), 0.1).item() == pytest.approx(0.1**0.9 * 0.9**0.1)
    far = torch.tensor([-200.0, 200.0])  # where SNR itself, or 1 / SNR, is no float32
    assert ((found := shift_weight(far, 0.1)) < 1e-8).all()
    assert found.isfinite().all()


def test_the_weight_is_largest_where_alpha_squared_is_gamma():
    logsnr = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    at = logsnr[shift_weight(logsnr, 0.1).argmax()]
    assert torch.sigmoid(at).item() == pytest.approx(0.1, abs=1e-3)


def test_an_estimator_that_says_nothing_leaves_the_denoiser_as_it_is():
    method = made(loud=True)
    x, t, z = pictures(), torch.tensor([0.02, 0.3, 0.7, 1.0]), torch.randn(4, 6, generator=gen(2))
    told = method.shifted(x, t, z)
    alone = method.predict(x, t).eps
    assert not torch.allclose(told, alone)
    for p in method.estimator.decoder.tail.parameters():
        p.data.zero_()
    assert torch.equal(method.shifted(x, t, z), alone)


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_the_shift_is_sigma_times_what_the_estimator_says(predicts):
    method = made(replace(CONFIG, predicts=predicts), loud=True)
    tail = method.estimator.decoder.tail
    tail.weight.data.zero_(), tail.bias.data.fill_(0.5)  # G is 1/2 everywhere
    x, t = pictures(), torch.tensor([0.02, 0.3, 0.7, 1.0])
    _, sigma = alpha_sigma(method.schedule.logsnr(t))
    shift = method.shifted(x, t, torch.zeros(4, 6)) - method.predict(x, t).eps
    torch.testing.assert_close(shift, (-0.5 * expand(sigma, x)).expand_as(x), rtol=1e-4, atol=1e-6)


def test_the_true_gradient_makes_the_noise_the_true_one():
    """By Bayes' rule the shift is due to the gradient of log p(z | x_t); where z says all, that is known."""
    method = made(loud=True).double()
    x0, eps = pictures().double(), torch.randn(4, 3, 8, 8, generator=gen(4), dtype=torch.float64)
    t = torch.tensor([0.02, 0.3, 0.7, 1.0], dtype=torch.float64)
    alpha, sigma = (expand(v, x0) for v in alpha_sigma(method.schedule.logsnr(t)))
    x_t = diffuse(x0, eps, method.schedule.logsnr(t))
    alone = method.predict(x_t, t).eps
    gradient = -(x_t - alpha * x0) / sigma**2 - (-alone / sigma)  # of log p(x_t | x0) - log p(x_t)
    method.estimator.forward = lambda *_: gradient
    torch.testing.assert_close(method.shifted(x_t, t, torch.zeros(4, 6)), eps, check_dtype=False)


def test_the_denoiser_is_frozen_while_codes_are_learned():
    method = made()
    frozen = [*method.unet.parameters(), *method.time.parameters()]
    owned = [p for ps in method.stages()[1].players.values() for p in ps]
    assert {id(p) for p in method.parameters()} == {id(p) for p in [*frozen, *owned]}
    assert len(frozen) + len(owned) == len(list(method.parameters()))
    before = [p.detach().clone() for p in frozen]
    optimizer = torch.optim.SGD(owned, lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(method, 1, step).backward()
        assert all(p.grad is None for p in frozen)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(p.grad is not None and p.grad.any() for p in owned)


def test_what_is_frozen_drops_nothing_out():
    method = made(replace(CONFIG, unet=replace(CONFIG.unet, dropout=0.5)), loud=True).train()
    x, t = pictures(), torch.full((4,), 0.5)
    loss_of(method, 1)
    assert torch.equal(method.predict(x, t).eps, method.predict(x, t).eps)
    assert not torch.equal(method.shifted(x, t, x.new_zeros(4, 6)), method.shifted(x, t, x.new_zeros(4, 6)))


def test_a_code_is_of_its_picture_alone():
    method = made(loud=True).eval()
    x = pictures(5)
    together = method.read(x, gen())["code"]
    assert together.shape == (5, 6)
    for i in range(5):
        torch.testing.assert_close(method.read(x[i : i + 1], gen())["code"][0], together[i])


def test_inversion_leads_back_to_the_picture_under_its_own_code_alone():
    method = made(
        replace(CONFIG, predicts="beyond")
    )  # beyond the right Gaussian, it denoises without training
    method.fit(lambda n: iter([pictures(64)]))
    for p in method.parameters():
        p.data += 0.03 * torch.randn(p.shape, generator=gen(1))
    method.eval()
    x = 0.5 * pictures(2)
    back = lambda n: method.sample(2, gen(), image=x, num_steps=n, inversion_steps=n).images
    near, far = ((back(n) - x).square().mean().item() for n in (60, 10))
    assert near < 1e-2
    assert 5 * near < far
    with torch.no_grad():
        untold = method.inverted(method.denoiser(None, {}), x, 20)
        noise = method.inverted(method.told(method.code(x)), x, 20)
    assert (untold - noise).square().mean() > 0.01


def test_a_picture_is_redrawn_by_its_code_and_nothing_by_none():
    method = made(loud=True).eval()
    x = pictures(2)
    given = method.sample(2, gen(3), image=x, noise="random", num_steps=3)
    assert torch.equal(given.readouts["code"], method.read(x, gen())["code"])
    alone = method.sample(2, gen(3), num_steps=3)
    assert torch.equal(alone.readouts["code"], method.read(alone.images, gen())["code"])
    for p in method.estimator.decoder.tail.parameters():
        p.data.zero_()
    assert torch.equal(method.sample(2, gen(3), image=x, noise="random", num_steps=3).images, alone.images)


def test_a_sampler_that_draws_noise_keeps_no_picture():
    assert "ddpm" in SAMPLERS
    with pytest.raises(ValueError, match="nothing of the picture would stay"):
        made().sample(1, gen(), image=pictures(1), sampler="ddpm")
    made().eval().sample(1, gen(), image=pictures(1), sampler="ddpm", noise="random", num_steps=2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dim": 1}, "dim is 1"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"size": 10}, "size is 10"),
        ({"encoder": replace(CONFIG.encoder, channels=1)}, "3 channels and encoder for 1"),
    ],
)
def test_what_cannot_be_built_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **wrong)


def test_a_ddpms_run_is_its_first_stage_to_the_last_bit(tmp_path, trained_run):
    ddpm = trained_run(tmp_path / "ddpm", "gae-ddpm")
    whole = trained_run(tmp_path / "whole", "pdae")
    begun = trained_run(tmp_path / "begun", "pdae", **{"begin-from": ddpm})
    first, last, other = (load_weights(run) for run in (ddpm, whole, begun))
    assert first.keys() < last.keys()
    assert all(torch.equal(v, last[k]) for k, v in first.items())
    assert {entry["stage"] for entry in read_log(begun)} == {"representation"}
    assert last.keys() == other.keys()
    assert all(torch.equal(v, other[k]) for k, v in last.items())
