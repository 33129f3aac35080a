"""Alter-ResNet: where attention stands, what its size may be, and what it can tell."""

import pytest
import torch

from pellucid.nets.attention import SelfAttention
from pellucid.nets.blocks import ResBlock
from pellucid.nets.resnet import AlterResNet, ResNetConfig


def test_attention_ends_each_stage_as_often_as_it_should():
    net = AlterResNet(ResNetConfig(base=8), 10)
    kinds = [[type(block) for block in stage.children()] for stage in net.stages]
    assert [len(stage) for stage in kinds] == [3, 4, 6, 3]
    assert [stage.count(SelfAttention) for stage in kinds] == [0, 1, 3, 2]
    for stage in kinds:
        assert stage == sorted(stage, key=lambda kind: kind is SelfAttention)
        assert stage[0] is ResBlock


@pytest.mark.parametrize(("stem", "places"), [(1, 1), (2, 1), (2, 4), (4, 2)])
def test_any_size_that_its_stride_divides_gives_one_code(stem, places):
    config = ResNetConfig(
        base=8, multipliers=(1, 2), blocks=(1, 2), attention=(0, 1), stem=stem, places=places
    )
    net = AlterResNet(config, 5)
    for side in (4 * config.stride, 6 * config.stride):
        assert net(torch.randn(2, 3, side, side)).shape == (2, 5)


def test_pictures_of_a_batch_do_not_see_each_other():
    net = AlterResNet(ResNetConfig(base=8, multipliers=(1, 2), blocks=(1, 2), attention=(0, 1)), 5).eval()
    for p in net.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": (3, 4)}, "one number for each stage"),
        ({"attention": (0, 1, 3, 3)}, "a stage begins with a convolution"),
        ({"stem": 3}, "stem is 3"),
    ],
)
def test_numbers_that_make_no_network_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ResNetConfig(**change)
