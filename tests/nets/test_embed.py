import math

import pytest
import torch

from pellucid.nets.embed import sinusoidal


def test_sinusoidal_agrees_with_its_formula():
    got = sinusoidal(torch.tensor([0.0, 3.0]), 4)
    want = torch.tensor(
        [[0, 0, 1, 1], [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]], dtype=torch.float32
    )
    torch.testing.assert_close(got, want)


def test_an_odd_size_is_refused():
    with pytest.raises(ValueError, match="not 5"):
        sinusoidal(torch.zeros(1), 5)
