"""Generation of every family under a write at every point: the cache changes nothing, windows are crossed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from arithmetic_forward import in_double
from family_cases import FAMILIES, opened, rows, sites_of
from mechscope.models.model import Model
from mechscope.vocabulary.where import Where
from nudge import Nudge

N_NEW = 4
EXACT = 1e-9
CAUSAL = [name for name in FAMILIES if name not in ("native_bidirectional", "bert")]


@contextmanager
def listening(model: Model) -> Iterator[list[Tensor]]:
    """The last position's logits of every forward pass inside the block."""
    heard: list[Tensor] = []
    handle = model.hf.register_forward_hook(lambda _m, _a, out: heard.append(out.logits[:, -1].clone()))
    try:
        yield heard
    finally:
        handle.remove()


def generate(
    model: Model, writes: list[Nudge], n_rows: int, *, use_cache: bool
) -> tuple[Tensor, list[list[int]]]:
    """Logits of every step, [step, row, d_vocab], and the new tokens."""
    with in_double(), listening(model) as heard:
        tokens = model.generate(
            rows(n_rows), interventions=writes, max_new_tokens=N_NEW, use_cache=use_cache, returns="tokens"
        )
    return torch.stack(heard), tokens


IN_PHASES = ("gpt2", "gemma2", "gpt_oss", "bloom")


@pytest.mark.parametrize(
    ("name", "phase"),
    [(name, "both") for name in CAUSAL]
    + [
        pytest.param(name, phase, marks=() if name in IN_PHASES else pytest.mark.slow)
        for name in CAUSAL
        for phase in ("prompt", "generated")
    ],
)
def test_cached_generation_equals_uncached_under_a_write_at_every_site(name: str, phase: str) -> None:
    model, sites = opened(name), sites_of(name)
    writes = [Nudge(str(site), Where(rows=(i,), phase=phase)) for i, site in enumerate(sites)]  # type: ignore
    cached, tokens = generate(model, writes, len(sites), use_cache=True)
    uncached, same_tokens = generate(model, writes, len(sites), use_cache=False)
    worst = (cached - uncached).abs().amax((0, 2))
    assert float(worst.max()) < EXACT, (sites[int(worst.argmax())], float(worst.max()))
    assert tokens == same_tokens
    plain, _ = generate(model, [], len(sites), use_cache=True)
    if phase == "both":
        shown = (cached - plain).abs().amax((0, 2))
        for row, site in enumerate(sites):  # what is heard of the logits is heard before they are written
            assert float(shown[row]) > 1e-3 or site.point == "logits", site
    if phase == "generated":
        assert torch.allclose(cached[0], plain[0], atol=EXACT), "the prompt's pass is left alone"


@pytest.mark.parametrize("name", CAUSAL)
def test_the_librarys_own_generate_sees_the_same_interventions(name: str) -> None:
    # Its sliding caches crop the key axis, and the nudge of a map counts key columns.
    model = opened(name)
    sites = [site for site in sites_of(name) if not site.row.is_attention_map and site.layer in (None, 1)]
    batch = rows(len(sites))
    writes = [Nudge(str(site), Where(rows=(i,))) for i, site in enumerate(sites)]
    _, tokens = generate(model, writes, len(sites), use_cache=True)
    with in_double(), torch.no_grad(), model.intervening(writes) as hf:
        out = hf.generate(  # type: ignore
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=N_NEW,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    assert out[:, batch.shape[1] :].tolist() == tokens


def test_an_edit_of_values_in_the_prompt_pass_alone_would_be_lost_later() -> None:
    model = opened("llama")
    once, _ = generate(model, [Nudge("v.1", Where(phase="prompt"))], 2, use_cache=True)
    plain, _ = generate(model, [], 2, use_cache=True)
    assert float((once[-1] - plain[-1]).abs().max()) > 1e-3, "prompt values stay edited at the last step"
