"""No site and one site, proved by counting: the same operators, the same bytes, and only the hook that was asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mechscope.interventions.steering import add
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral")
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


class Counter(TorchDispatchMode):
    """Every operator with its inputs' shapes, and the bytes of the storages that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, tuple[Any, ...]]] = []
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [item for item in args if isinstance(item, Tensor)]
        self.ops.append((str(func), tuple(tuple(item.shape) for item in given)))
        known = {item.untyped_storage().data_ptr() for item in given}
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor) and item.untyped_storage().data_ptr() not in known:
                self.n_bytes += item.untyped_storage().nbytes()
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
