"""A model that is broken in any of six ways is refused, with family, part and difference."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface

from family_cases import FAMILIES
from mechscope.models import attention
from mechscope.models.anatomy import Anatomy, Head, Part
from mechscope.models.binding import Binding
from mechscope.models.identity import Identity
from mechscope.models.model import Model
from mechscope.models.opening import describe, wrap
from mechscope.models.probe import Finding
from mechscope.models.self_check import check_model, refuse_if_failed
from mechscope.vocabulary.errors import SelfCheckFailed
from tiny_models import tiny


def opened_with(name: str, change: Callable[[Anatomy], Anatomy] = lambda anatomy: anatomy) -> Model:
    """A tiny model under a changed anatomy, unchecked."""
    hf = tiny(name)
    return Model(Binding(hf, change(describe(hf))), None, identity=Identity(name="broken"))


def failed(model: Model) -> dict[str, list[Finding]]:
    """Findings that do not hold, by part; the refusal is checked on the way."""
    findings = check_model(model)
    bad: dict[str, list[Finding]] = {}
    for finding in findings:
        if not finding.holds:
            bad.setdefault(finding.part, []).append(finding)
    if bad:
        with pytest.raises(SelfCheckFailed) as caught:
            refuse_if_failed(findings, model)
        text = str(caught.value)
        assert model.binding.anatomy.family in text and next(iter(bad)) in text
        assert any(
            words in text for words in ("difference", "was not called", "per layer", "leaves every logit")
        )
    return bad


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_opens(name: str, dtype: torch.dtype) -> None:
    wrap(tiny(name, dtype))


HALF = ("gpt2", "llama", "gemma2", "olmo2", "gpt_oss", "mixtral", "gpt_neo", "bloom")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", [name if name in HALF else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_opens_in_half_precision(name: str, dtype: torch.dtype) -> None:
    wrap(tiny(name, dtype))


@pytest.mark.parametrize(
    ("name", "dtype", "seed"),
    [
        ("gpt_oss", torch.float16, 8),
        ("mixtral", torch.float16, 21),
        ("mixtral", torch.bfloat16, 20),
        *(
            pytest.param(name, dtype, seed, marks=pytest.mark.slow)
            for name in ("gpt_oss", "mixtral", "qwen3_moe")
            for dtype in (torch.bfloat16, torch.float16)
            for seed in range(25)
        ),
    ],
)
def test_a_near_tie_between_experts_is_no_fault(name: str, dtype: torch.dtype, seed: int) -> None:
    wrap(tiny(name, dtype, seed))


@pytest.fixture
def without_mask() -> Iterator[None]:
    """Our attention function is given a mask that hides nothing."""

    def see_everything(*args: Any, **kwargs: Any) -> Tensor:
        mask = attention.eager_mask(*args, **kwargs)
        assert mask is not None
        return torch.zeros_like(mask)

    before = AttentionMaskInterface._global_mapping[attention.IMPLEMENTATION]
    AttentionMaskInterface.register(attention.IMPLEMENTATION, see_everything)
    yield
    AttentionMaskInterface.register(attention.IMPLEMENTATION, before)


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_another_attention_is_seen_through_given_routes(name: str, without_mask: None) -> None:
    """Twin: experts are chosen alike in both passes, and a wrong attention still shows, in the routers too."""
    bad = failed(opened_with(name))
    assert any("router_logits" in finding.what for finding in bad["forward"])


def test_a_missing_causal_mask_is_seen(without_mask: None) -> None:
    bad = failed(opened_with("llama"))
    assert {"forward", "causality", "padding"} <= set(bad)
    assert "identities" not in bad, "which is why identities alone would not do"


def test_a_part_that_is_not_what_the_stream_receives_is_seen() -> None:
    bad = failed(opened_with("gemma2", lambda a: replace(a, parts={**a.parts, "mlp_out": Part("mlp")})))
    assert list(bad) == ["identities"]
    assert "residual + attention + MLP, layer 0" in [finding.what for finding in bad["identities"]]
    assert all(finding.difference > 1e-3 for finding in bad["identities"])


def test_padding_that_shifts_positions_is_seen() -> None:
    model = opened_with("gpt2")
    model.binding.takes_positions = False
    assert "padding" in failed(model)


def test_attention_that_is_never_called_is_seen() -> None:
    bad = failed(opened_with("gpt_neo", lambda a: replace(a, attention=replace(a.attention, inner=None))))
    assert "calls" in bad
    assert bad["calls"][0].note == "attention function called [0, 0, 0] times per layer"


def test_attention_that_is_called_twice_is_seen() -> None:
    model = opened_with("llama")
    module = model.binding.attentions[1]
    forward = module.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        forward(*args, **kwargs)
        return forward(*args, **kwargs)

    module.forward = twice  # type: ignore
    bad = failed(model)
    assert [finding.note for finding in bad["calls"]] == [
        "attention function called [1, 2, 1] times per layer"
    ] * 2


def test_a_write_that_reaches_nothing_is_seen() -> None:
    hf = tiny("llama")
    for layer in hf.model.layers:  # type: ignore
        layer.mlp.spare = nn.Linear(32, 44)
        layer.mlp.register_forward_pre_hook(call_spare)
    anatomy = describe(hf)
    anatomy = replace(anatomy, parts={**anatomy.parts, "mlp_pre": Part("mlp.spare")})
    bad = failed(Model(Binding(hf, anatomy), None, identity=Identity(name="broken")))
    assert list(bad) == ["writes"]
    assert [finding.note for finding in bad["writes"]] == [
        "writing another value leaves every logit as it was"
    ]


def call_spare(mlp: Any, args: tuple[Tensor, ...]) -> None:
    mlp.spare(args[0])


def test_a_head_that_forgets_the_soft_cap_is_seen() -> None:
    bad = failed(opened_with("gemma2", lambda a: replace(a, head=Head())))
    assert [finding.what for finding in bad["identities"]] == ["norm and head = logits"]


def test_logits_that_differ_from_the_untouched_models_are_seen() -> None:
    model = opened_with("llama")
    module = model.binding.attentions[2]

    def tamper(_module: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        is_ours = model.binding.hf.config._attn_implementation_internal == attention.IMPLEMENTATION  # type: ignore
        return (output[0] * 1.01, *output[1:]) if is_ours else output

    module.register_forward_hook(tamper)
    bad = failed(model)
    assert {finding.what for finding in bad["forward"]} >= {"logits, unpadded", "logits, padded"}


def test_a_rule_of_routing_that_is_not_the_models_is_seen() -> None:
    def choose_first(a: Anatomy) -> Anatomy:
        assert a.experts is not None
        return replace(a, experts=replace(a.experts, is_renormalised=False))

    bad = failed(opened_with("mixtral", choose_first))
    assert "rule of the weights, layer 0" in [finding.what for finding in bad["identities"]]
