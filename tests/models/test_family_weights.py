"""Canonical weights reproduce what the modules compute, head by head, and are views of the parameters."""

import pytest
import torch
from torch import Tensor

from arithmetic_forward import in_double
from family_cases import FAMILIES, opened, rows
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site

NAMES = "W_Q W_K W_V W_O W_in W_gate W_out b_Q b_K b_V b_O b_in b_gate b_out".split()


def with_bias(model: Model, product: Tensor, name: str, layer: int) -> Tensor:
    return product + model.weights[name, layer] if model.weights.has(name, layer) else product


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_reproduce_projections_from_their_inputs(name: str) -> None:
    model, batch = opened(name), rows()
    weights, formed = model.weights, set(model.binding.formed)
    compared = 0
    with torch.no_grad(), in_double():
        run = model.run(batch, capture=model.binding.formed)
        for layer in range(model.n_layers):
            for letter, source, target in (
                ("Q", "attn_in", "q_proj"),
                ("K", "attn_in", "k_proj"),
                ("V", "attn_in", "v"),
                ("O", "z", "attn_raw"),
                ("in", "mlp_in", "mlp_pre"),
                ("gate", "mlp_in", "mlp_gate"),
                ("out", "mlp_post", "mlp_raw"),
            ):
                sites = {Site(source, layer), Site(target, layer)}
                if not sites <= formed or not weights.has(f"W_{letter}", layer):
                    continue
                if letter in "QK" and name == "native_attention_only":
                    continue  # shortformer: queries and keys read positions besides
                matrix = weights[f"W_{letter}", layer]
                pattern = {"O": "bphd,hdm->bpm"}.get(
                    letter, "bpm,hmd->bphd" if letter in "QKV" else "bpi,io->bpo"
                )
                product = torch.einsum(pattern, run.cache[Site(source, layer)], matrix)
                product = with_bias(model, product, f"b_{letter}", layer)
                assert torch.allclose(product, run.cache[Site(target, layer)], atol=1e-10), (letter, layer)
                compared += 1
        head = model.binding.anatomy.head
        last = Site("ln_final") if Site("ln_final") in formed else Site("resid_post", model.n_layers - 1)
        logits = run.cache[last] @ weights["W_U"] + (weights["b_U"] if weights.has("b_U") else 0)
        logits = logits * head.scale
        logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
        assert run.logits is not None and torch.allclose(logits, run.logits, atol=1e-10)
    assert compared >= 2 * model.n_layers


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_views_of_parameters(name: str) -> None:
    model = opened(name)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.hf.parameters()}
    for weight in ("W_E", "W_U"):
        assert model.weights[weight].untyped_storage().data_ptr() in storages, weight
    found = [weight for weight in NAMES if model.weights.has(weight)]
    for weight in found:
        assert model.weights[weight, 0].untyped_storage().data_ptr() in storages, weight
    assert "W_O" in found
