"""A family without an adapter is matched by its structure, and whatever is matched must pass the self-check."""

from collections.abc import Iterator

import pytest
import torch

from mechscope.models import opening
from mechscope.models.opening import wrap
from mechscope.models.structure import match_by_structure
from mechscope.vocabulary.errors import SelfCheckFailed, UnsupportedModel
from tiny_models import tiny

MATCHED = "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo2 starcoder2 stablelm stablelm_parallel phi".split()


@pytest.fixture
def no_adapters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(opening, "registered_families", dict)
    yield


@pytest.mark.parametrize("name", MATCHED)
def test_a_known_family_is_matched_without_its_adapter(
    name: str, no_adapters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = tiny(name)
    guessed = wrap(hf)
    monkeypatch.undo()
    known = wrap(hf, check=False)
    assert guessed.binding.anatomy.family == f"{hf.config.model_type} (matched by structure)"  # type: ignore
    assert guessed.sites == known.sites
    for point in ("ln1", "ln2", "ln_final"):
        assert guessed.binding.anatomy.norms.get(point) == known.binding.anatomy.norms.get(point)


def test_a_fork_with_another_name_is_matched() -> None:
    hf = tiny("llama")
    hf.config.__class__ = type("ForkedConfig", (type(hf.config),), {"model_type": "forked_llama"})
    hf.__class__ = type("ForkedForCausalLM", (type(hf),), {})
    model = wrap(hf)
    assert "forked_llama" in repr(model)
    assert torch.isfinite(model.logits([[1, 2, 3]])).all()


def test_a_wrong_guess_is_refused_by_the_self_check(no_adapters: None) -> None:
    with pytest.raises(SelfCheckFailed) as caught:  # its residual multiplier cannot be seen in its modules
        wrap(tiny("granite"))
    assert "granite (matched by structure)" in str(caught.value)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "bloom", "phi3"])
def test_what_is_not_built_of_the_usual_parts_is_refused(name: str, no_adapters: None) -> None:
    hf = tiny(name)
    assert match_by_structure(hf) is None
    with pytest.raises(UnsupportedModel, match="no adapter"):
        wrap(hf)
