"""The self-check: six things that must hold on a probe before a model counts as open.

1 forward   logits (and patterns, where the model returns them) equal the untouched model's
2 identities residual in + attention + MLP = residual out (each sum normed, where norms stand on the stream);
            pattern x values = z; z through W_O = attention; final norm and head = logits
3 causality changing the last token leaves earlier logits as they were
4 padding   a left-padded row equals the row alone
5 calls     our attention function is called once per layer, padded and unpadded
6 writes    writing a point's own value changes nothing, another value changes the logits
            (or at least the residual stream after the last layer, where the head does not read it)

The identities alone hold to the last bit when the causal mask is missing, so 1, 3 and 5 are not extras.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechscope.models.attention import attend, configurations
from mechscope.models.derived import normed
from mechscope.models.experts import weigh_experts
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.lock import held
from mechscope.models.probe import Finding, Probe, Routes, relative_difference, tolerance_of
from mechscope.models.resources import head_of
from mechscope.models.running import Kept, call_model
from mechscope.models.session import Plan, session
from mechscope.vocabulary.errors import SelfCheckFailed, UnsupportedModel
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    import mechscope.models.model


def check_model(model: "mechscope.models.model.Model") -> list[Finding]:
    """Run the six parts; what fails is a finding. Cost: about forty passes over a dozen tokens.

    Raises:
        UnsupportedModel: the class gives no logits, so that there is nothing to check.
    """
    probe = Probe(model)
    parts = (_forward, _identities, _causality, _padding, _calls, _writes)
    with held(model.hf), torch.no_grad():
        _refuse_without_logits(probe)
        return [finding for part in parts for finding in part(probe)]


def _refuse_without_logits(probe: Probe) -> None:
    output = call_model(probe.binding, Frame.of(probe.long))
    if "logits" not in output:
        raise UnsupportedModel(
            f"{type(probe.model.hf).__name__} gives no logits.",
            got=", ".join(output),
            because="runs, metrics and lenses read logits over the vocabulary",
            instead="the same weights with a language head: AutoModelForCausalLM or AutoModelForMaskedLM",
        )


def refuse_if_failed(findings: Sequence[Finding], model: "mechscope.models.model.Model") -> None:
    """Refuse the model if any part failed, with family, part and difference.

    Raises:
        SelfCheckFailed
    """
    failed = [finding for finding in findings if not finding.holds]
    if not failed:
        return
    worst = failed[0]
    raise SelfCheckFailed(
        f'{model.identity.name} ({model.binding.anatomy.family}) fails its self-check in "{worst.part}".',
        got="; ".join(
            f"{f.what}: {f.note or f'difference {f.difference:.2g} of the range'}" for f in failed[:4]
        ),
        because=f"the tolerance for {str(model.dtype).removeprefix('torch.')} is {tolerance_of(model):g}, "
        "and a result from this model could be silently wrong",
        instead="mechscope doctor MODEL shows all six parts; ms.load(..., check=False) opens it at your own risk",
    )


_At = Callable[[str], Tensor | None]
"""A layer's tensor at a point; None where it is not formed."""


def _forward(probe: Probe) -> list[Finding]:
    found = []
    for name, batch in (("unpadded", probe.long), ("padded", probe.padded)):
        real = batch.mask.bool()
        routes, routers = probe.plain_routes(batch)
        kept = probe.ours(batch, routes)
        assert kept.logits is not None
        found.append(
            probe.compare("forward", f"logits, {name}", kept.logits[real], probe.plain_rows(batch)[real])
        )
        for site, wanted in routers.items():
            found.append(probe.compare("forward", f"{site}, {name}", kept.tensors[site][real], wanted[real]))
    if probe.binding.anatomy.attention.has_interface:
        found += _patterns(probe)
    return found


def _patterns(probe: Probe) -> list[Finding]:
    wanted, routes = _own_patterns(probe)
    if not wanted:
        return []
    kept = probe.ours(probe.long, routes)
    missing = [i for i in range(len(wanted)) if Site("pattern", i) not in kept.tensors]
    if missing:
        note = "no pattern was formed, since our attention function was not called"
        return [Finding("forward", f"pattern, layer {missing[0]}", float("inf"), False, note)]
    pairs = [(kept.tensors[Site("pattern", i)], w) for i, w in enumerate(wanted)]
    differences = [relative_difference(got, own) for got, own in pairs]
    worst = max(range(len(pairs)), key=differences.__getitem__)
    holds = differences[worst] <= max(probe.tolerance, 1e-6)
    return [Finding("forward", f"pattern, layer {worst}", differences[worst], holds)]


def _own_patterns(probe: Probe) -> tuple[list[Tensor], Routes]:
    """The model's own attention patterns under its eager attention, and its routes there; none where it has none."""
    configs = configurations(probe.binding.attentions)
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "eager"
        output = call_model(probe.binding, Frame.of(probe.long), output_attentions=True)
        routes, _ = probe.plain_routes(probe.long)
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
    maps = output.attentions
    return ([] if maps is None or any(m is None for m in maps) else list(maps)), routes


def _identities(probe: Probe) -> list[Finding]:
    kept = probe.ours(probe.padded)
    real = probe.padded.mask.bool()
    found: list[Finding] = []
    for layer in range(probe.binding.n_layers):
        for what, got, wanted in _layer_identities(probe, kept, layer):
            found.append(probe.compare("identities", f"{what}, layer {layer}", got[real], wanted[real]))
    last = kept.tensors[Site("resid_post", probe.binding.n_layers - 1)]
    assert kept.logits is not None
    found.append(
        probe.compare(
            "identities", "norm and head = logits", head_of(probe.binding)(last)[real], kept.logits[real]
        )
    )
    return found


def _layer_identities(probe: Probe, kept: Kept, layer: int) -> list[tuple[str, Tensor, Tensor]]:
    def at(point: str) -> Tensor | None:
        return kept.tensors.get(Site(point, layer))

    pairs = (_normed_sums if probe.binding.anatomy.is_stream_normed else _sums)(probe, at, layer)
    pattern, values, z, raw = at("pattern"), at("v"), at("z"), at("attn_raw")
    if pattern is not None and values is not None and z is not None:
        groups = pattern.shape[1] // values.shape[2]
        spread = values.repeat_interleave(groups, dim=2)
        pairs.append(("pattern x values = z", torch.einsum("bhqk,bkhd->bqhd", pattern, spread), z))
    if z is not None and raw is not None:
        weights = probe.model.weights
        out = torch.einsum("bphd,hdm->bpm", z, weights["W_O", layer])
        pairs.append(
            (
                "z through W_O = attention",
                out + weights["b_O", layer] if weights.has("b_O", layer) else out,
                raw,
            )
        )
    return pairs + _expert_identities(probe, kept, layer)


def _sums(_probe: Probe, at: _At, _layer: int) -> list[tuple[str, Tensor, Tensor]]:
    """What is added to the residual stream adds up to it."""
    pre, post, attn, mlp = at("resid_pre"), at("resid_post"), at("attn_out"), at("mlp_out")
    pairs: list[tuple[str, Tensor, Tensor]] = []
    if pre is not None and post is not None and attn is not None:
        summed = pre + attn if mlp is None else pre + attn + mlp
        pairs.append(("residual + attention + MLP", summed, post))
    if pre is not None and attn is not None and (mid := at("resid_mid")) is not None:
        pairs.append(("residual + attention = resid_mid", pre + attn, mid))
    return pairs


def _normed_sums(probe: Probe, at: _At, layer: int) -> list[tuple[str, Tensor, Tensor]]:
    """What is added is added and normed, twice a layer; the norms as their formula says, not by their modules."""
    home, norms = probe.binding.layers[layer], probe.binding.anatomy.norms
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for name, before, added, after in (
        ("residual + attention, normed = resid_mid", "resid_pre", "attn_out", "resid_mid"),
        ("resid_mid + MLP, normed = residual", "resid_mid", "mlp_out", "resid_post"),
    ):
        stream, part, wanted = at(before), at(added), at(after)
        if stream is not None and part is not None and wanted is not None:
            norm = norms["ln1" if added == "attn_out" else "ln2"]
            pairs.append((name, normed(stream + part, home.get_submodule(norm.module), norm), wanted))
    return pairs


def _expert_identities(probe: Probe, kept: Kept, layer: int) -> list[tuple[str, Tensor, Tensor]]:
    spec = probe.binding.anatomy.experts
    if spec is None or layer not in probe.binding.experts:
        return []
    points = ("router_logits", "expert_choice", "expert_weight", "expert_out", "mlp_raw")
    logits, choice, weights, outputs, raw = (kept.tensors[Site(point, layer)] for point in points)
    best = logits.topk(spec.n_chosen, dim=-1).values
    return [
        ("chosen experts = best logits", logits.gather(-1, choice), best),
        ("rule of the weights", weigh_experts(logits, choice, spec), weights),
        ("sum of expert outputs = MLP", outputs.sum(dim=-2), raw),
    ]


def _causality(probe: Probe) -> list[Finding]:
    if not probe.binding.anatomy.is_causal or probe.long.shape[1] < 2:
        return []
    ids = probe.long.ids.clone()
    ids[:, -1] = (ids[:, -1] + 1) % probe.model.d_vocab
    changed = TokenBatch(ids, probe.long.n_pad)
    before = probe.ours(probe.long)
    routes = {site: route[:, :-1] for site, route in probe.routes_in(before).items()}
    after = probe.ours(changed, routes)
    assert before.logits is not None and after.logits is not None
    what = "earlier logits after another last token"
    return [probe.compare("causality", what, after.logits[:, :-1], before.logits[:, :-1])]


def _padding(probe: Probe) -> list[Finding]:
    short = probe.padded.select([1])
    n_real = short.shape[1]
    kept = probe.ours(probe.padded)
    routes = {site: route[1:, -n_real:] for site, route in probe.routes_in(kept).items()}
    together, alone = kept.logits, probe.ours(short, routes).logits
    assert together is not None and alone is not None
    return [probe.compare("padding", "left-padded row = row alone", together[1, -n_real:], alone[0])]


def _calls(probe: Probe) -> list[Finding]:
    if not probe.binding.anatomy.attention.has_interface:
        return []
    found = []
    for name, batch in (("unpadded", probe.long), ("padded", probe.padded)):
        counts = count_attention_calls(probe.model, batch)
        holds = counts == [1] * probe.binding.n_layers
        note = "" if holds else f"attention function called {counts} times per layer"
        found.append(Finding("calls", f"once per layer, {name}", 0.0 if holds else 1.0, holds, note))
    return found


def count_attention_calls(model: "mechscope.models.model.Model", batch: TokenBatch) -> list[int]:
    """How often our attention function is called in each layer during one pass."""
    binding = model.binding
    counts = [0] * binding.n_layers

    def desk(layer: int, taps: object) -> Callable[..., object]:
        def count(call: object) -> object:
            counts[layer] += 1
            return attend(call, binding.anatomy.attention, {})  # pyright: ignore

        return count

    with session(binding, Plan(desk=desk)):  # pyright: ignore
        call_model(binding, Frame.of(batch))
    return counts


def _writes(probe: Probe) -> list[Finding]:
    binding = probe.binding
    sites = [site for site in binding.formed if site.row.is_writable]
    last = Site("resid_post", binding.n_layers - 1)
    kept = probe.ours(probe.long, capture=(last, *probe.route_sites))
    base, end = kept.logits, kept.tensors[last]
    clones = dict.fromkeys((site for site in sites if site not in probe.route_sites), torch.clone)
    own = probe.ours(probe.long, probe.routes_in(kept), capture=(), writers=clones).logits
    assert base is not None and own is not None
    found = [probe.compare("writes", "own values written back everywhere", own, base)]
    points = sorted({site.point for site in sites})
    for index, point in enumerate(points):
        at = [site for site in sites if site.point == point]
        site = at[index % len(at)]
        after = probe.ours(probe.long, capture=(last,), writers={site: _disturb(site, probe)})
        written = after.logits
        assert written is not None
        # A specimen may have parts that the head does not read; what they write stands in the residual stream.
        changed = not torch.equal(written, base) or not torch.equal(after.tensors[last], end)
        note = "" if changed else "writing another value leaves every logit as it was"
        found.append(
            Finding("writes", f"another value at {site}", relative_difference(written, base), changed, note)
        )
    return found


def _disturb(site: Site, probe: Probe) -> Callable[[Tensor], Tensor]:
    """A writer of a value that is not proportional to the old one: norms undo a uniform scaling."""

    def write(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return (value + 1) % probe.model.sizes.get("expert", int(value.max()) + 2)
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(value.shape, generator=generator).to(value)
        finite = value[torch.isfinite(value)]
        return value + noise * (finite.float().std() + 0.1).to(value)

    return write
