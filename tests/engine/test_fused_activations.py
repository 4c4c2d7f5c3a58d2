"""Fused activations: the same function to rounding, only inside the block, and only where it is that function."""

import pytest
import torch
from torch import nn

from mechscope.engine.fused_activations import fused_activations
from mechscope.models.opening import wrap
from tiny_models import tiny


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama"])
def test_a_layer_computes_the_same_and_is_left_as_it_was(name: str) -> None:
    hf = tiny(name, torch.float64)
    binding = wrap(hf, None, check=False).binding
    before = [dict(module.__dict__) for module in hf.modules()]
    mlp = binding.layers[0].mlp
    x = torch.randn(2, 3, hf.config.hidden_size, dtype=torch.float64)
    wanted = mlp(x)
    with pytest.raises(ZeroDivisionError), fused_activations(binding, 0):
        assert torch.allclose(mlp(x), wanted, atol=1e-12, rtol=0)
        assert any("forward" in module.__dict__ for module in mlp.modules()) is (name != "llama")
        raise ZeroDivisionError
    assert [dict(module.__dict__) for module in hf.modules()] == before


def test_another_activation_would_be_noticed() -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert not torch.allclose(nn.functional.gelu(x), nn.functional.gelu(x, approximate="tanh"), atol=1e-12)
