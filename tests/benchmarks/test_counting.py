"""No site and one site, proved by counting: the same operators, the same bytes, and only the hook that was asked.

Two things are counted. Strictly: every operator in its order, with its inputs' shapes. Where a site is read in axes
that the model's tensor does not have (heads after positions, one part of a fused projection), a view of that tensor
is the one operator more; it computes nothing and allocates nothing. So the sites inside attention are counted
strictly but for one named view, and all others by the operators that compute, allocate or write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mechscope.interventions.replace import edit
from mechscope.interventions.steering import add
from mechscope.models import session
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral")
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


INSIDE = ("q.1", "k.1", "v.1", "z.1")
VIEW = "aten.transpose.int"
"""The library's attention has heads before positions, the table of points has them after."""

Op = tuple[str, tuple[Any, ...]]


class Counter(TorchDispatchMode):
    """Every operator with its inputs' shapes, those of them that are no mere views, and the bytes of new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.works: list[Op] = []
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [item for item in args if isinstance(item, Tensor)]
        op = (str(func), tuple(tuple(item.shape) for item in given))
        known = {item.untyped_storage().data_ptr() for item in given}
        made = [
            item for item in (out if isinstance(out, tuple | list) else (out,)) if isinstance(item, Tensor)
        ]
        new = [item for item in made if item.untyped_storage().data_ptr() not in known]
        self.n_bytes += sum(item.untyped_storage().nbytes() for item in new)
        self.ops.append(op)
        if new or not made or func._schema.is_mutable:
            self.works.append(op)
        return out


@contextmanager
def counting(hf: nn.Module) -> Iterator[Counter]:
    """Count what happens inside the model's own forward, and nothing around it."""
    counter = Counter()
    forward = hf.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with counter:
            return forward(*args, **kwargs)

    hf.forward = counted  # type: ignore[method-assign]
    try:
        yield counter
    finally:
        del hf.forward


@contextmanager
def hooks_placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[nn.Module, str]]]:
    """Every hook that is registered meanwhile, with its module."""
    placed: list[tuple[nn.Module, str]] = []
    with monkeypatch.context() as patched:
        for name in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            original = getattr(nn.Module, name)

            def noting(
                module: nn.Module, *args: Any, _name: str = name, _do: Any = original, **more: Any
            ) -> Any:
                placed.append((module, _name))
                return _do(module, *args, **more)

            patched.setattr(nn.Module, name, noting)
        yield placed


def opened(family: str) -> tuple[Model, Any]:
    hf = tiny(family)
    return wrap(hf, check=False), hf


def plain(hf: Any) -> Counter:
    """The stock model called as our runs call it: padding and positions said, no cache."""
    ids = torch.tensor(IDS)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad(), counting(hf) as counter:
        hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions,
            use_cache=False,
            return_dict=True,
        )
    return counter


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_without_sites_dispatches_what_the_plain_forward_does(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hf = opened(family)
    with hooks_placed(monkeypatch) as placed, counting(hf) as ours:
        model.run(IDS)
    stock = plain(hf)
    assert placed == []
    assert ours.ops == stock.ops
    assert ours.n_bytes == stock.n_bytes
    assert len(stock.ops) > 20, "an empty count would equal anything"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("site", "hook"), [("resid_post.1", "layers"), ("mlp_out.1", ""), ("resid_pre.2", "")]
)
def test_a_run_with_one_site_places_one_hook_and_adds_no_operator_and_no_byte(
    family: str, site: str, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hf = opened(family)
    with hooks_placed(monkeypatch) as placed, counting(hf) as ours:
        run = model.run(IDS, capture=[site])
    stock = plain(hf)
    assert [module for module, _ in placed] == [model.binding.place(model.binding.site(site)).module]
    assert ours.ops == stock.ops
    assert ours.n_bytes == stock.n_bytes
    assert run.cache[site].shape[:2] == (2, 8)
    if hook:
        assert placed[0][0] is model.binding.layers[1]


def extra(ours: list[Op], stock: list[Op]) -> list[str]:
    """Operators of ours between those of the stock run; refuses if these are not all there in their order."""
    rest, found = list(stock), []
    for op in ours:
        if rest and op == rest[0]:
            del rest[0]
        else:
            found.append(op[0])
    assert not rest, f"the stock run's {rest[0]} is missing or at another place"
    return found


@pytest.mark.parametrize("family", (*FAMILIES, "gpt_oss", "qwen3", "opt"))
@pytest.mark.parametrize("site", INSIDE)
def test_a_site_inside_attention_leaves_the_models_own_attention_as_it_was(
    family: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v are one view of the model's tensor, in the table's axes; z is that tensor itself."""
    model, hf = opened(family)
    with hooks_placed(monkeypatch) as placed, counting(hf) as ours:
        run = model.run(IDS, capture=[site])
    stock = plain(hf)
    assert placed == []
    assert extra(ours.ops, stock.ops) == ([] if site == "z.1" else [VIEW])
    assert ours.n_bytes == stock.n_bytes
    assert run.cache[site].shape[:2] == (2, 8)


def countable(model: Model) -> list[str]:
    """The formed sites of a layer; not maps, and not single experts' outputs, which the stock kernels never form."""
    sites = [site for site in model.binding.formed if site.layer == 1 and site.point != "expert_out"]
    return [str(site) for site in sites if not site.row.is_attention_map]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_any_one_site_adds_nothing_that_computes_or_allocates(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hf = opened(family)
    stock = plain(hf)
    assert {"attn_out.1", "resid_mid.1", *INSIDE} & set(countable(model)) >= {"attn_out.1", *INSIDE}
    for site in countable(model):
        with hooks_placed(monkeypatch) as placed, counting(hf) as ours:
            model.run(IDS, capture=[site])
        assert len(placed) <= 1, site
        assert ours.works == stock.works, site
        assert ours.n_bytes == stock.n_bytes, site


@pytest.mark.parametrize("site", INSIDE)
def test_a_copy_inside_attention_would_be_seen(site: str) -> None:
    model, hf = opened("llama")
    with counting(hf) as ours:
        model.run(IDS, interventions=[edit(site, torch.clone)])
    stock = plain(hf)
    assert "aten.clone.default" in extra(ours.works, stock.works)
    assert ours.n_bytes > stock.n_bytes


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_another_attention_in_the_models_place_would_be_seen(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours equals it in value; it needs a mask that the fused kernel does without, or forms scores otherwise."""
    model, hf = opened(family)
    monkeypatch.setattr(session, "_keeps_own_attention", lambda *_: False)
    with counting(hf) as ours:
        model.run(IDS, capture=["z.1"])
    stock = plain(hf)
    assert ours.works != stock.works and ours.n_bytes != stock.n_bytes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", INSIDE)
def test_reading_inside_attention_changes_no_bit_of_the_logits(family: str, site: str) -> None:
    model, _ = opened(family)
    padded = model.tokens([IDS[0], IDS[1][:5]])
    for batch in (model.tokens(IDS), padded):
        read = model.run(batch, capture=[site]).logits
        untouched = model.run(batch).logits
        assert read is not None and untouched is not None and torch.equal(read, untouched)


def test_calls_are_kept_of_the_layers_asked_for_and_hold_no_model() -> None:
    model, _ = opened("llama")
    cache = model.run(IDS, capture=["q.1"]).cache
    assert cache.call(1).own is None and "pattern.1" in cache and "pattern.0" not in cache
    formed = model.run(IDS, capture=["pattern.1"]).cache["pattern.1"]
    torch.testing.assert_close(cache["pattern.1"], formed, rtol=0, atol=1e-6)


def test_what_is_kept_is_the_models_own_tensor_and_no_copy() -> None:
    model, hf = opened("gpt2")
    seen: list[Tensor] = []
    handle = hf.transformer.h[1].register_forward_hook(lambda _m, _a, out: seen.append(out))
    run = model.run(IDS, capture=["resid_post.1"])
    handle.remove()
    own = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert run.cache["resid_post.1"].data_ptr() == own.data_ptr()


def test_no_hook_is_left_behind() -> None:
    model, hf = opened("gpt2")
    model.run(IDS, capture=["*"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_an_intervention_does_add_operators_so_the_count_can_tell() -> None:
    model, hf = opened("gpt2")
    with counting(hf) as ours:
        model.run(IDS, interventions=[add("resid_post.1", torch.ones(model.d_model), absolute=1.0)])
    stock = plain(hf)
    assert len(ours.ops) > len(stock.ops)
    assert ours.n_bytes > stock.n_bytes


def test_a_copy_would_be_seen_in_the_bytes() -> None:
    _, hf = opened("gpt2")
    handle = hf.transformer.h[1].register_forward_hook(
        lambda _m, _a, out: out.clone() if isinstance(out, Tensor) else (out[0].clone(), *out[1:])
    )
    with_copy = plain(hf)
    handle.remove()
    assert with_copy.n_bytes > plain(hf).n_bytes
