"""direct_logit_attribution: the logit (difference) as a sum over what each component adds to the residual stream.

Invariant: the terms add up to the logit difference before a final soft-cap, with the final norm's scale held at
the run's own; heads and the attention's bias add up to their layer's term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.interventions.metrics import Answers, LogitDifference
from mechscope.lenses.logit_lens import columns_of
from mechscope.lenses.result import LensResult, hash_of, mean_over_prompts
from mechscope.models.cache import Cache
from mechscope.models.derived import norm_scale, norm_weight
from mechscope.models.inputs import Inputs, refuse_unknown_ids
from mechscope.models.limits import refuse_normed_stream
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, kw_only=True)
class LogitAttribution(LensResult):
    """Result of `direct_logit_attribution`, in logits.

    Args:
        per_prompt: [component, prompt]: "embed", each attention and MLP, and "bias" (final norm's and unembedding's).
        heads_per_prompt: [layer, head, prompt]; None where the model does not form `z`.
        attention_bias: What the output projections' biases add, [layer, prompt]; None likewise.
    """

    lens: ClassVar[str] = "direct-logit-attribution"
    per_prompt: LabelledArray
    heads_per_prompt: LabelledArray | None = None
    attention_bias: LabelledArray | None = None

    @property
    def components(self) -> LabelledArray:
        """Mean over prompts, [component]."""
        return mean_over_prompts(self.per_prompt)

    @property
    def heads(self) -> LabelledArray | None:
        """Mean over prompts, [layer, head]."""
        return None if self.heads_per_prompt is None else mean_over_prompts(self.heads_per_prompt)

    @property
    def total(self) -> LabelledArray:
        """Sum over components, [prompt]: the logit difference before a final soft-cap."""
        return LabelledArray(
            self.per_prompt.values.sum(0), ("prompt",), unit="logits", title="logit difference"
        )

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "magnitude"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k strongest heads; components where there are no heads."""
        return (self.components if self.heads is None else self.heads).top(k, by)

    def plot(self, what: Literal["components", "heads"] = "components") -> Any:
        """Plotly bars of the components, or a heatmap of the heads."""
        return (self.heads if what == "heads" and self.heads is not None else self.components).plot()

    def __repr__(self) -> str:
        return f"LogitAttribution, logit difference {self.total.values.mean():.4g}\n{self.components!r}"

    def _repr_html_(self) -> str:
        return self.components._repr_html_()


def direct_logit_attribution(
    model: Model,
    prompts: Inputs,
    *,
    answers: LogitDifference | Sequence[Any] | int | str,
    wrong: Sequence[Any] | int | str | None = None,
    position: int = -1,
) -> LogitAttribution:
    """Split the logit difference between answers and foils into what each component and head adds directly.

    Args:
        model: An open model.
        prompts: Text, ids or a batch.
        answers: A `LogitDifference` metric (a behavior's), or one answer a prompt: id, word, or several of them
            (their mean logit).
        wrong: Foils likewise; None attributes the answers' logits themselves.
        position: Whose logits; negative from the end.

    Returns:
        Terms in logits by component and by head; their sum is `total`.

    Raises:
        BadPairs: another number of answers than of prompts.
        PointUnavailable: norms stand on the residual stream, so that the logits are no sum.

    Cost: one run and one dot product a component and head.
    Caveat: no indirect effects, and nothing about what would happen without the component.
        docs/methods/direct_logit_attribution.md.
    """
    refuse_normed_stream(model.binding.anatomy, "Direct effects on the logits")
    batch = model.tokens(prompts)
    right, foils, position = _answers(model, answers, wrong, position, len(batch))
    _, columns, _ = columns_of(batch, [position])
    last = Site("resid_post", model.n_layers - 1)
    formed = set(model.binding.formed)
    parts = [Site("resid_pre", 0)] + [
        site
        for layer in range(model.n_layers)
        for site in (Site("attn_out", layer), Site("mlp_out", layer))
        if site in formed
    ]
    layers = [layer for layer in range(model.n_layers) if _splits_into_heads(formed, layer)]
    inside = [Site(point, layer) for layer in layers for point in ("z", "attn_raw")]
    run = model.run(batch, capture=sorted({*parts, *inside, last}), stop_after=last)
    at = _Reader(run.cache, columns[:, 0])
    toward, bias = _direction(model, at[last], right, foils)
    terms = [(at[site] * toward).sum(-1) for site in parts] + [bias]
    labels = ["embed", *(str(site) for site in parts[1:]), "bias"]
    conventions = {"norm scale": "the run's own", "soft-cap": "before", "prompts": len(batch)}

    def labelled(values: Tensor, coords: dict[str, Any]) -> LabelledArray:
        return LabelledArray(
            values.cpu().numpy(),
            (*coords, "prompt"),
            coords=coords,
            unit="logits",
            title="direct effect on the logit difference" if foils else "direct effect on the logit",
            conventions=conventions,
        )

    heads, rest = (None, None)
    if len(layers) == model.n_layers:
        found = [_heads(model, at, layer, toward) for layer in layers]
        heads = labelled(
            torch.stack([part[0] for part in found]), {"layer": layers, "head": range(model.n_heads)}
        )
        rest = labelled(torch.stack([part[1] for part in found]), {"layer": layers})
    return LogitAttribution(
        per_prompt=labelled(torch.stack(terms), {"component": labels}),
        heads_per_prompt=heads,
        attention_bias=rest,
        settings={
            "answers": [list(row) for row in right],
            "wrong": [list(row) for row in foils],
            "position": position,
            "bos": batch.bos,
        },
        model=model.fingerprint,
        data_sha256=hash_of(batch),
    )


class _Reader:
    """Reads a cache at one column a row, in float64."""

    def __init__(self, cache: Cache, columns: Tensor) -> None:
        self._cache = cache
        self._columns = columns

    def __getitem__(self, site: Site) -> Tensor:
        value = self._cache[site].detach()
        rows = torch.arange(len(value), device=value.device)
        return value[rows, self._columns.to(value.device)].double().cpu()


def _direction(model: Model, final: Tensor, right: Answers, foils: Answers) -> tuple[Tensor, Tensor]:
    """What a vector added to the residual stream is multiplied with, [batch, d_model], and the biases' term."""
    binding = model.binding
    unembedding = model.weights["W_U"].detach().T
    unembedding_bias = (
        model.weights["b_U"].detach() if model.weights.has("b_U") else unembedding.new_zeros(len(unembedding))
    )

    def means(table: Tensor) -> Tensor:
        means = [table[list(row)].double().mean(0) for row in right]
        if foils:
            means = [mean - table[list(row)].double().mean(0) for mean, row in zip(means, foils, strict=True)]
        return torch.stack(means).cpu() * binding.anatomy.head.scale

    toward, bias = means(unembedding), means(unembedding_bias)
    norm, module = binding.anatomy.norms.get("ln_final"), binding.final_norm
    if norm is None or module is None:
        return toward, bias
    found = norm_weight(module, norm)
    if found["bias"] is not None:
        bias = bias + toward @ found["bias"].detach().double().cpu()
    if found["weight"] is not None:
        toward = toward * found["weight"].detach().double().cpu()
    if norm.kind == "layer":
        toward = toward - toward.mean(-1, keepdim=True)
    return toward / norm_scale(final, norm), bias


def _heads(model: Model, at: _Reader, layer: int, toward: Tensor) -> tuple[Tensor, Tensor]:
    """Terms of a layer's heads, [head, batch], and of its output projection's bias, [batch].

    What attention adds may be normed or scaled on its way to the residual stream. Both are a factor on each
    coordinate in this run, so the heads get the same factor and still add up.
    """
    raw, added = at[Site("attn_raw", layer)], at[Site("attn_out", layer)]
    factor = torch.where(
        raw == 0, torch.zeros_like(raw), added / torch.where(raw == 0, torch.ones_like(raw), raw)
    )
    weight = model.weights["W_O", layer].detach().double().cpu()
    heads = torch.einsum("bhd,hdm,bm->hb", at[Site("z", layer)], weight, toward * factor)
    if not model.weights.has("b_O", layer):
        return heads, torch.zeros(len(raw), dtype=torch.float64)
    return heads, (toward * factor) @ model.weights["b_O", layer].detach().double().cpu()


def _splits_into_heads(formed: set[Site], layer: int) -> bool:
    return {Site("z", layer), Site("attn_raw", layer), Site("attn_out", layer)} <= formed


def _answers(
    model: Model, answers: Any, wrong: Any, position: int, n_prompts: int
) -> tuple[Answers, Answers, int]:
    """Sets of ids a prompt, and the position read."""
    if isinstance(answers, LogitDifference):
        right, foils, position = answers.answers, answers.wrong, answers.position
        foils = () if not any(foils) else foils
    else:
        right = _sets(model, answers, n_prompts)
        foils = () if wrong is None else _sets(model, wrong, n_prompts)
    if len(right) != n_prompts or len(foils) not in (0, n_prompts):
        raise BadPairs(
            "Each prompt needs its answer.",
            got=f"{len(right)} answers, {len(foils)} foils, {n_prompts} prompts",
            instead="one answer a prompt, and one foil a prompt or none",
        )
    return right, foils, position


def _sets(model: Model, given: Any, n_prompts: int) -> Answers:
    if isinstance(given, int | str):
        given = [given] * n_prompts

    def ids(item: Any) -> tuple[int, ...]:
        items = [item] if isinstance(item, int | str) else list(item)
        found = tuple(model.token(one) if isinstance(one, str) else int(one) for one in items)
        refuse_unknown_ids(found, model.d_vocab)
        return found

    return tuple(ids(item) for item in given)
