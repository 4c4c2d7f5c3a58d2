"""Reference sets are run in blocks, no further than they are read, and give what one whole run gives."""

import pytest
import torch

from mechscope.interventions import resolve as resolving
from mechscope.interventions.ablation import Ablation, ablate
from mechscope.interventions.resolve import resolve
from small_models import opened

PADDED = ((1, 2, 3), (4, 5, 6, 7, 8, 9, 10), (11, 12), (13, 14, 15, 16, 17))
EVEN = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12))


@pytest.mark.parametrize(
    ("at", "how", "reference", "by_position"),
    [
        ("z.1", "mean", PADDED, False),
        ("resid_post.*", "mean", PADDED, False),
        ("mlp_out.0", "mean", EVEN, True),
        ("pattern.1", "resample", EVEN, False),
    ],
)
def test_blocks_give_what_one_run_gives(
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    how: str,
    reference: tuple[tuple[int, ...], ...],
    by_position: bool,
) -> None:
    model = opened("gpt2", torch.float64)
    write = ablate(at, how, reference=reference, by_position=by_position)
    runs: list[int] = []
    before = model.run
    monkeypatch.setattr(model, "run", lambda batch, **k: runs.append(len(batch)) or before(batch, **k))
    (whole,) = resolve(model, [write])
    assert runs == [len(reference)]
    monkeypatch.setattr(resolving, "TOKENS_AT_ONCE", 8)
    (blocks,) = resolve(model, [write])
    assert len(runs) > 2 and sum(runs) == 2 * len(reference)
    assert isinstance(whole, Ablation) and isinstance(blocks, Ablation) and whole.donor and blocks.donor
    for (site, one), (other, two) in zip(whole.donor.values, blocks.donor.values, strict=True):
        assert site == other
        torch.testing.assert_close(one.tensor, two.tensor, rtol=1e-12, atol=1e-12)


def test_nothing_is_unembedded_nor_run_beyond_the_last_site() -> None:
    model = opened("gpt2")
    called: list[str] = []
    layers = model.binding.layers
    handles = [model.hf.get_submodule("lm_head").register_forward_hook(lambda *_: called.append("head"))]
    handles += [
        layer.register_forward_hook(lambda *_, index=index: called.append(f"layer {index}"))
        for index, layer in enumerate(layers)
    ]
    try:
        resolve(model, [ablate("z.0", "mean", reference=EVEN)])
    finally:
        for handle in handles:
            handle.remove()
    assert called == [], "attention of the first layer is as far as it goes"
