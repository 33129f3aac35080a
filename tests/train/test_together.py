"""One loss for several players: each is stepped by an optimiser of its own, or none is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pellucid.methods.base import Method, Stage
from pellucid.train.checkpoint import latest
from pellucid.train.log import read_log
from pellucid.train.trainer import StageConfig, TrainConfig, TrainingError, seeded, train
from pellucid.types import Batch


class Noise:
    """20 fixed pictures."""

    shape = (3, 4, 4)
    class_names: tuple[str, ...] = ()
    fingerprint = "noise"

    def __len__(self) -> int:
        return 20

    def batch(self, indices):
        pictures = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return Batch(x0=torch.stack(pictures).clamp(-1, 1))


class Duet(Method):
    """Two maps, one behind the other, and a third that learns alone."""

    name = "duet"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second, self.alone = nn.Linear(48, 5), nn.Linear(5, 48), nn.Linear(48, 1)
        self.controls, self.readouts, self.image_shape = {}, {}, (3, 4, 4)
        self.poison: int | None = None

    def stages(self):
        return (Playing(self),)


class Playing(Stage):
    name = "play"
    shows = None

    def __init__(self, method: Duet) -> None:
        self.method, self.step = method, 0
        self.players = {k: list(getattr(method, k).parameters()) for k in ("first", "second", "alone")}

    def losses(self, batch, rng):
        x = batch.x0.flatten(1) + 0.1 * torch.randn(len(batch), 48, generator=rng)
        loss = (self.method.second(self.method.first(x)) - x).square().mean()
        if self.step == self.method.poison:  # finite itself, with a gradient of the first that is not
            loss = loss + (self.method.first.bias - self.method.first.bias.detach()).abs().sqrt().sum()
        yield ("first", "second"), {"back": loss}
        yield "alone", {"own": (self.method.alone(x) - 1).square().mean()}

    def after_step(self, step: int) -> None:
        self.step = step + 1


CONFIG = TrainConfig(
    steps=6, batch_size=4, lr=1e-2, warmup=3, grad_clip=0.05, log_every=1, checkpoint_every=100, ema_decay=0.5,
    flip=False, stages={"play": StageConfig(lr_of={"second": 0.1})},
)  # fmt: skip


def go(run, method, config=CONFIG):
    return train(method, Noise(), config, run, meta={"method": "duet", "train": {"steps": config.steps}})


def test_each_of_several_players_has_its_optimiser_its_rate_and_its_clipping(tmp_path):
    method, seen = Duet(), []
    stage_of = method.stages

    def listening():
        (stage,) = stage_of()
        inner = stage.losses
        stage.losses = lambda batch, rng: (seen.append(batch), inner(batch, rng))[1]
        return (stage,)

    method.stages = listening
    go(tmp_path / "run", method)
    other = Duet()
    (stage,) = other.stages()
    rates = {"first": 1e-2, "second": 1e-3, "alone": 1e-2}
    optimizers = {
        k: torch.optim.AdamW(v, rates[k], (0.9, 0.99), weight_decay=0.0) for k, v in stage.players.items()
    }
    for step, batch in enumerate(seen):
        for who, terms in stage.losses(batch, seeded(0, 0, step, 0)):
            other.zero_grad()
            sum(terms.values()).backward()
            for name in (who,) if isinstance(who, str) else who:
                nn.utils.clip_grad_norm_(stage.players[name], 0.05)
                optimizers[name].param_groups[0]["lr"] = rates[name] * min(1, (step + 1) / 3)
                optimizers[name].step()
        stage.after_step(step)
    for (name, ours), theirs in zip(method.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    lines = [line for line in read_log(tmp_path / "run") if "first.grad_norm" in line]
    assert {
        "first.grad_norm",
        "second.grad_norm",
        "alone.grad_norm",
        "first+second.back",
        "alone.own",
    } <= set(lines[-1])


def test_where_one_gradient_is_not_finite_no_player_is_stepped(tmp_path):
    method = Duet()
    method.poison = 2
    stopped = Duet()
    go(tmp_path / "two", stopped, TrainConfig(**vars(CONFIG) | {"steps": 2}))
    with pytest.raises(
        TrainingError, match=r"the gradient is not finite at step 2; no optimiser has stepped"
    ):
        go(tmp_path / "run", method)
    assert latest(tmp_path / "run") is None
    before = dict(stopped.named_parameters())
    for name, value in method.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, before[name]), name


def test_players_that_step_together_are_continued_bit_for_bit(tmp_path):
    go(tmp_path / "whole", Duet())
    train(
        Duet(),
        Noise(),
        CONFIG,
        tmp_path / "parts",
        meta={"method": "duet", "train": {"steps": 6}},
        stop_after=3,
    )
    go(tmp_path / "parts", Duet())
    one, two = (latest(tmp_path / name) for name in ("whole", "parts"))
    for group in ("model", "ema", "optim"):
        ours, theirs = one.tensors(group), two.tensors(group)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
