"""The identities that the construction of factorized diffusion implies."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from pellucid.methods.baselines.ddpm import DDPM, DDPMConfig
from pellucid.methods.factorized import (
    REGION_GUIDANCE,
    CodePainter,
    Factorized,
    FactorizedConfig,
    Form,
    Painter,
    SharedPainter,
    masked,
    mixture_loss,
    region_codes,
)
from pellucid.methods.kernels import confidence, explain
from pellucid.nets.unet import UNetConfig
from pellucid.process.schedule import alpha_sigma
from pellucid.types import Batch

UNET = UNetConfig(base=8, multipliers=(1, 2), blocks=1)
FORMS: tuple[Form, ...] = ("shared", "unshared", "concat", "masked_mid", "code", "hybrid", "kernel")


def make(seed: int = 0, **options) -> Factorized:
    """A small model whose zero-initialised layers are woken up, so that it does something."""
    torch.manual_seed(seed)
    method = Factorized(FactorizedConfig(size=16, unet=UNET, **options))
    for parameter in method.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return method.eval()


def noisy(n: int = 3, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=rng), torch.rand(n, generator=rng)


def test_one_region_is_a_ddpm():
    method = make(form="shared", regions=1)
    ddpm = DDPM(DDPMConfig(size=16, unet=UNET)).eval()
    level = method.level
    assert isinstance(level.painter, SharedPainter)
    ddpm.unet.encoder.load_state_dict(level.encoder.state_dict())
    ddpm.unet.middle.load_state_dict(level.middle.state_dict())
    ddpm.unet.decoder.load_state_dict(level.painter.decoder.state_dict())
    ddpm.time.embed.load_state_dict(level.time.embed.state_dict())
    # the factorized modulator also serves the mask generator: drop those rows
    rows = 2 * sum(level.encoder.widths + level.middle.widths)
    end = rows + 2 * sum(level.masker.widths)
    for name in ("weight", "bias"):
        whole = getattr(level.time.to_affine.project, name).data
        getattr(ddpm.time.to_affine.project, name).data = torch.cat([whole[:rows], whole[end:]])
    x, t = noisy()
    assert torch.equal(method.predict(x, t).eps, ddpm.predict(x, t).eps)


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_a_partition(form):
    found = make(form=form).predict(*noisy())
    torch.testing.assert_close(found.masks.sum(1), torch.ones(3, 16, 16))
    assert found.masks.min() >= 0


def test_masks_stay_a_partition_at_every_resolution():
    masks = torch.rand(2, 3, 16, 16).softmax(1)
    for side in (16, 8, 4, 1):
        ones = torch.ones(2, 5, side, side)
        total = masked(ones, masks).unflatten(0, (2, 3)).sum(1)
        torch.testing.assert_close(total, ones)


@pytest.mark.parametrize("form", ["shared", "masked_mid", "code", "hybrid"])
def test_the_order_of_regions_changes_nothing_but_the_order(form):
    method = make(form=form)
    x, t = noisy()
    before = method.predict(x, t)
    order = [2, 0, 1]
    tail = method.level.masker.tail
    tail.weight.data, tail.bias.data = tail.weight.data[order], tail.bias.data[order]
    after = method.predict(x, t)
    torch.testing.assert_close(after.masks, before.masks[:, order])
    torch.testing.assert_close(after.eps, before.eps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask_skips", [True, False])
def test_folded_and_looped_regions_agree(mask_skips):
    method = make(form="shared" if mask_skips else "masked_mid")
    x, t = noisy()
    masks, h, skips, _, mod = method.level.find(x, t, None)
    painter = method.level.painter
    folded = painter(x, h, skips, masks, mod)
    for k in range(3):
        own = masks[:, k : k + 1]
        if mask_skips:
            alone = painter.decoder(h, [masked(s, own) for s in skips], mod)
        else:
            alone = painter.decoder(masked(h, own), skips, mod)
        torch.testing.assert_close(folded[:, k], alone, atol=1e-5, rtol=1e-5)


def gradients(method: Factorized) -> dict[str, torch.Tensor]:
    x0 = noisy()[0].clamp(-1, 1)
    for _, terms in method.stages()[0].losses(Batch(x0=x0), torch.Generator().manual_seed(0)):
        sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    return {k: p.grad for k, p in method.named_parameters()}


@pytest.mark.parametrize("form", ["shared", "kernel"])
def test_what_is_computed_again_is_the_same(form):
    kept, forgot = (gradients(make(form=form, recompute=again)) for again in (False, True))
    for key, value in kept.items():
        torch.testing.assert_close(forgot[key], value)


@pytest.mark.parametrize("painter", get_args(Painter))
def test_the_painter_does_not_reach_the_masks_of_a_form_with_a_teacher(painter):
    found = gradients(make(form="kernel", painter=painter, explain_weight=0.0))
    assert not found["level.masker.tail.weight"].any()
    assert all(grad.any() for key, grad in found.items() if key.endswith("tail.weight") and "painter" in key)


def test_a_mixture_of_one_region_is_the_mean_squared_error():
    parts, eps = torch.randn(2, 1, 3, 8, 8), torch.randn(2, 3, 8, 8)
    plain = (parts[:, 0] - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(mixture_loss(parts, torch.ones(2, 1, 8, 8), eps), plain, atol=1e-5, rtol=1e-5)


def test_a_mixture_asks_only_the_region_that_paints_a_pixel_best():
    eps = torch.randn(1, 3, 8, 8)
    parts = torch.stack([eps, eps + 2], 1)
    even = torch.full((1, 2, 8, 8), 0.5)
    right, wrong = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)], 1), torch.zeros(1, 2, 8, 8)
    wrong[:, 1] = 1
    losses = [mixture_loss(parts, m, eps).item() for m in (right, even, wrong)]
    assert losses == sorted(losses)
    # the mean error is 2: even masks owe the choice alone, log 2, but for what the wrong region has to say
    assert losses[1] - losses[0] == pytest.approx(2 * 2 / 3 * math.log(2 / (1 + math.exp(-3))), rel=1e-3)


def test_a_region_code_is_the_mean_under_its_mask():
    features = torch.randn(1, 4, 8, 8)
    masks = torch.zeros(1, 2, 8, 8)
    masks[:, 0, :2] = 1  # 16 pixels; the second region is empty
    codes = region_codes(features, masks)
    torch.testing.assert_close(codes[0, 0], features[0, :, :2].sum((1, 2)) / 17)
    assert not codes[0, 1].any()


def test_the_code_painter_sees_only_its_neighbourhood():
    torch.manual_seed(0)
    config = FactorizedConfig(size=16, unet=UNET, form="code", code_layers=3)
    painter = CodePainter(config)
    nn.init.normal_(painter.tail.weight)
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    out = painter(x, torch.tensor([0.3]), torch.randn(1, 2, config.code_dim))
    (grad,) = torch.autograd.grad(out[0, 0, :, 8, 8].sum(), x)
    touched = grad[0].abs().sum(0) > 0
    ys, xs = touched.nonzero(as_tuple=True)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (5, 11, 5, 11)  # 7 pixels across: 2 * 3 + 1


def test_hybrid_masks_learn_from_the_codes_alone():
    method = make(form="hybrid")
    x, t = noisy()
    eps, _, teacher = method.factor(x, t, None, teach=True)
    tail = method.level.masker.tail.weight
    (from_image,) = torch.autograd.grad(eps.square().mean(), tail, retain_graph=True, allow_unused=True)
    (from_codes,) = torch.autograd.grad(teacher.square().mean(), tail)
    assert from_image is None
    assert from_codes.abs().max() > 0


def test_two_levels_nest():
    method = make(form="shared", subregions=2)
    out = method.read(torch.rand(2, 3, 16, 16) * 2 - 1, torch.Generator().manual_seed(0))
    assert out["fine_masks"].shape == (2, 6, 16, 16)
    torch.testing.assert_close(out["fine_masks"].unflatten(1, (3, 2)).sum(2), out["masks"])
    torch.testing.assert_close(out["masks"].sum(1), torch.ones(2, 16, 16))


def test_two_levels_follow_their_equation():
    """eps = sum_i m0_i (h0_i + sum_j h1_ij m1_ij) / 2, one branch at a time (section 2.5.1)."""
    method = make(form="shared", subregions=2)
    x, t = noisy()
    first = method.level(x, t)
    expected = torch.zeros_like(x)
    for i in range(3):
        own = first.masks[:, i : i + 1]
        second = method.fine(x * own, t)
        inner = (second.masks[:, :, None] * second.parts).sum(1)
        expected += own * (first.parts[:, i] + inner) / 2
    torch.testing.assert_close(method.predict(x, t).eps, expected, atol=1e-5, rtol=1e-5)


def test_reading_runs_no_painter_and_agrees_with_predicting():
    method = make(form="hybrid")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    called = []
    method.level.painter.register_forward_hook(lambda *_: called.append(1))
    read = method.read(x, torch.Generator().manual_seed(3))["masks"]
    assert not called
    x_t, t = method.noised(x, 0.03, torch.Generator().manual_seed(3))
    torch.testing.assert_close(read, method.predict(x_t, t).masks)


def test_reading_takes_other_sizes():
    out = make().read(torch.zeros(1, 3, 32, 24), torch.Generator().manual_seed(0))
    assert out["masks"].shape == (1, 3, 32, 24)


def test_region_swap_keeps_the_rest_exactly():
    method = make(form="shared")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    rng = torch.Generator().manual_seed(5)
    sample = method.sample(2, rng, image=image, regions=(1,), num_steps=4)
    again = torch.Generator().manual_seed(5)
    method.noise((2, 3, 16, 16), again)
    changed = method.regions_of(image.expand(2, -1, -1, -1), again, (1,)).bool().expand(-1, 3, -1, -1)
    assert 0 < changed.float().mean() < 1
    kept = image.expand(2, -1, -1, -1)
    torch.testing.assert_close(sample.images[~changed], kept[~changed])
    assert (sample.images - kept)[changed].abs().max() > 0.05


def test_walking_again_keeps_what_is_kept_and_looks_more_often(monkeypatch):
    method, image = make(form="shared"), torch.rand(1, 3, 16, 16) * 2 - 1
    looks = []
    predict = method.predict
    monkeypatch.setattr(method, "predict", lambda *given: (looks.append(1), predict(*given))[1])
    region = method.regions_of(image, torch.Generator().manual_seed(0), (0, 1)).bool().expand(-1, 3, -1, -1)
    made = []
    for walks in (1, 3):
        rng = torch.Generator().manual_seed(0)
        made.append(method.sample(1, rng, image=image, regions=(0, 1), walks=walks, num_steps=20))
        torch.testing.assert_close(made[-1].images[~region], image[~region])
    assert len(looks) == 20 + 3 * 20
    assert not torch.equal(made[0].images, made[1].images)


def test_blending_a_picture_with_itself_changes_nothing():
    method = make(form="shared")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    one = method.sample(1, torch.Generator().manual_seed(0), image=image, num_steps=3)
    two = method.sample(
        1, torch.Generator().manual_seed(0), image=image, blend_with=image, blend=0.7, num_steps=3
    )
    torch.testing.assert_close(one.images, two.images)


def test_classes_condition_and_can_be_hidden():
    method = make(form="code", class_names=("a", "b"))
    x, t = noisy()
    a, b = (method.predict(x, t, torch.full((3,), c)).eps for c in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(method.predict(x, t, torch.full((3,), 2)).eps, method.predict(x, t).eps)
    hidden = method.hidden_labels(torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert 0.07 < (hidden == 2).float().mean() < 0.13


def test_a_conditional_model_says_when_data_has_no_classes():
    method = make(class_names=("a", "b"))
    losses = method.stages()[0].losses(Batch(x0=torch.zeros(2, 3, 16, 16)), torch.Generator())
    with pytest.raises(ValueError, match="no classes"):
        next(losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 0}, "regions is 0"),
        ({"size": 15}, "multiple of 2"),
        ({"form": "hybrid", "subregions": 2}, "two levels"),
    ],
)
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FactorizedConfig(unet=UNET, **{"size": 16} | options)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"num_stepz": 3}, "did you mean 'num_steps'|Did you mean 'num_steps'"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"regions": (1,)}, "give 'image' as well"),
        (
            {"image": torch.zeros(1, 3, 16, 16), "regions": (1,), "walks": 2, "sampler": "heun"},
            "heun walks only once",
        ),
        ({"image": torch.zeros(1, 3, 8, 8)}, "picture is"),
        ({"image": torch.zeros(1, 3, 16, 16), "regions": (3,)}, "numbers from 0 to 2"),
        ({"sampler": "euler"}, "one of ddim"),
        (
            {k: torch.zeros(1, 3, 16, 16) for k in ("image", "blend_with")} | {"regions": (1,)},
            "give one of them",
        ),
    ],
)
def test_mistaken_controls_are_named(controls, message):
    with pytest.raises(ValueError, match=message):
        make().sample(1, torch.Generator().manual_seed(0), **controls)


@pytest.mark.parametrize("form", ["hybrid", "kernel"])
def test_what_paints_teaches_nothing_about_the_masks(form):
    """The decoder's loss alone: the mask generator's last layer, which nothing else shares, gets no gradient."""
    method = make(form=form)
    x, t = noisy()
    eps, _, _ = method.factor(x, t, None)
    eps.square().mean().backward()
    assert not any(p.grad is not None and p.grad.any() for p in method.level.masker.tail.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.level.painter.parameters())


def test_only_the_surest_pictures_teach_the_masks():
    """A square on a flat ground is sure; faint noise is not, and which noise it is does not matter."""
    x0 = torch.full((4, 3, 16, 16), -0.8)
    x0[:, :, 5:11, 5:11] = 0.8
    noise = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.6
    assert confidence(explain(noise[0], 3)).max() < confidence(explain(x0, 3)).min()
    terms = []
    for unsure in noise:
        method = make(form="kernel", sure_share=0.5)
        stage = method.stages()[0]
        batch = Batch(x0=torch.cat([x0[:2], unsure]))
        (_, found) = next(iter(stage.losses(batch, torch.Generator().manual_seed(0))))
        terms.append(found["explain"].item())
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


def test_a_region_below_its_floor_is_pulled_up():
    method = make(form="shared", min_share=0.5)
    (_, terms) = next(iter(method.stages()[0].losses(Batch(x0=torch.zeros(2, 3, 16, 16)), torch.Generator())))
    assert terms["floor"] > 0
    (_, terms) = next(
        iter(make(form="shared").stages()[0].losses(Batch(x0=torch.zeros(2, 3, 16, 16)), torch.Generator()))
    )
    assert "floor" not in terms


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_says_v_says_the_same_noise(form):
    """The same weights under either name: eps = alpha v + sigma x, whatever the masks."""
    as_eps, as_v = make(form=form), make(form=form, predicts="v")
    x, t = noisy()
    alpha, sigma = (v[:, None, None, None] for v in alpha_sigma(as_v.schedule.logsnr(t)))
    expected = alpha * as_eps.predict(x, t).eps + sigma * x
    torch.testing.assert_close(as_v.predict(x, t).eps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_goes_beyond_a_gaussian_says_v_beyond_its_v(form):
    as_v, beyond = make(form=form, predicts="v"), make(form=form, predicts="beyond")
    x, t = noisy()
    torch.testing.assert_close(beyond.predict(x, t).eps, as_v.predict(x, t).eps)  # nothing is known yet
    pictures = 0.3 * torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(0)) - 0.5
    beyond.fit(lambda n: iter(pictures[:n].split(20)))
    logsnr = beyond.schedule.logsnr(t)
    alpha, _ = (v[:, None, None, None] for v in alpha_sigma(logsnr))
    expected = as_v.predict(x, t).eps + alpha * beyond.gaussian.v(x, logsnr)
    torch.testing.assert_close(beyond.predict(x, t).eps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("form", "painter"), [("hybrid", "shared"), ("kernel", "concat"), ("kernel", "own")])
def test_region_guidance_is_a_line_through_two_paintings(form, painter):
    """At 0 the painter is told nothing of the regions, at 1 what it is trained with, beyond on the same line."""
    method = make(form=form, painter=painter)
    x, t = noisy()
    at = lambda w: method.predict(x, t, None, {"region_guidance": w})
    torch.testing.assert_close(at(1.0).eps, method.predict(x, t).eps, rtol=0, atol=0)
    assert not torch.equal(at(0.0).eps, at(1.0).eps)
    torch.testing.assert_close(
        at(3.0).eps, at(0.0).eps + 3 * (at(1.0).eps - at(0.0).eps), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(at(3.0).masks, at(1.0).masks, rtol=0, atol=0)


def test_only_a_painter_that_it_was_measured_with_is_guided_unless_asked():
    assert "region_guidance" not in make(form="kernel", regions=1).controls
    assert "region_guidance" not in make(form="shared").controls
    found = {p: make(form="kernel", painter=p).controls["region_guidance"].default for p in ("own", "shared")}
    assert found == {"own": REGION_GUIDANCE, "shared": 1.0}


def test_a_region_that_the_picture_does_not_have_is_said(monkeypatch):
    method, image = make(), torch.zeros(1, 3, 16, 16)
    nowhere = lambda image, rng, regions, **reading: torch.zeros(len(image), 1, 16, 16)
    monkeypatch.setattr(method, "regions_of", nowhere)
    with pytest.raises(ValueError, match="no pixel in regions 2"):
        method.sample(1, torch.Generator().manual_seed(0), image=image, regions=(2,), num_steps=2)


@pytest.mark.parametrize("walks", [1, 3])
def test_snapshots_are_all_there_and_fall(walks):
    method, image = make(form="shared"), torch.rand(1, 3, 16, 16) * 2 - 1
    rng = torch.Generator().manual_seed(0)
    sample = method.sample(1, rng, image=image, regions=(0, 1), walks=walks, num_steps=20, snapshots=8)
    times = [t for t, _ in sample.trace]
    assert len(times) == 8
    assert times == sorted(times, reverse=True)
