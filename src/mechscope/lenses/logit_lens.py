"""logit_lens: the residual stream of each layer read as if it were the last.

Invariant: at the last layer, probabilities and ranks are those of the model itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mechscope.figures.labelled import LabelledArray
from mechscope.lenses.result import LensResult, hash_of
from mechscope.models.inputs import Inputs, TokenBatch, refuse_unknown_ids
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange, ShapeError
from mechscope.vocabulary.points import RESIDUAL_POINTS
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, kw_only=True)
class LogitLens(LensResult):
    """Result of `logit_lens`. Axes: prompt (if there are several), layer, pos; padding is NaN.

    Args:
        log_probability: Of the target, in nats.
        rank: Of the target among all tokens, 0 for the most probable.
        probabilities: Of the k most probable tokens, with a last axis "place", best first; 0 to 1.
        token_ids: Their ids.
        tokens: Their texts, by id.
    """

    lens: ClassVar[str] = "logit-lens"
    log_probability: LabelledArray
    rank: LabelledArray
    probabilities: LabelledArray
    token_ids: LabelledArray
    tokens: dict[str, str]

    def top(self, k: int = 5, *, layer: int = -1, pos: int = -1, prompt: int = 0) -> list[tuple[str, float]]:
        """The k most probable tokens at a place, with probabilities; -1 is the last layer or position shown.

        Raises:
            PositionOutOfRange: more tokens than the lens kept, or a place that it did not look at.
        """
        shown = self.probabilities.shape[-1]
        if not 1 <= k <= shown:
            raise PositionOutOfRange(
                f"The lens kept {shown} tokens a place.", got=f"k={k}", instead=f"logit_lens(..., top={k})"
            )
        at = self._index(layer=layer, pos=pos, prompt=prompt)
        chances, ids = self.probabilities.values[at][:k], self.token_ids.values[at][:k]
        return [(self.tokens[str(int(index))], float(p)) for index, p in zip(ids, chances, strict=True)]

    def plot(self, prompt: int = 0) -> Any:
        """A Plotly heatmap of the target's log-probability, with the most probable token in each cell."""
        several = "prompt" in self.rank.dims
        shown = self.log_probability.sel(prompt=prompt) if several else self.log_probability
        best = self.token_ids.values[prompt] if several else self.token_ids.values
        figure = shown.plot()
        words = [[self.tokens.get(str(int(index)), "") for index in row] for row in best[..., 0]]
        return figure.update_traces(text=words, texttemplate="%{text}")

    def __repr__(self) -> str:
        return f"LogitLens\n{self.log_probability!r}"

    def _repr_html_(self) -> str:
        return self.log_probability._repr_html_()

    def _index(self, **wanted: int) -> tuple[int, ...]:
        array = self.log_probability
        found = [
            array.shape[axis] - 1
            if wanted[dim] == -1 and -1 not in array.coords[dim]
            else array.index_of(dim, wanted[dim])
            for axis, dim in enumerate(array.dims)
        ]
        return tuple(found)


def logit_lens(
    model: Model,
    prompts: Inputs,
    *,
    site: str = "resid_post",
    target: int | str | Sequence[int | str] | None = None,
    positions: int | Sequence[int] | None = None,
    top: int = 5,
) -> LogitLens:
    """Unembed the residual stream of each layer through the final norm, and look at the tokens.

    Args:
        model: An open model.
        prompts: Text, ids or a batch.
        site: "resid_post", "resid_pre" or "resid_mid".
        target: Token to follow: an id or a word, one for all prompts or one each. None follows, at each position,
            the token that the model itself finds most probable there.
        positions: Which to read, negative from the end; None is all. With prompts of several lengths, positions
            are counted from the end.
        top: Most probable tokens to keep a place.

    Returns:
        Log-probability and rank of the target, and the most probable tokens, [layer, pos] each.

    Cost: one run; one unembedding a layer and position, one layer at a time.
    Caveat: early layers may hold the information in another basis: nothing seen is not nothing there.
        docs/methods/logit_lens.md.
    """
    batch = model.tokens(prompts)
    sites = _residual_sites(model, site)
    last = Site("resid_post", model.n_layers - 1)
    run = model.run(batch, capture=sorted({*sites, last}), stop_after=last)
    labels, columns, is_real = columns_of(batch, positions)
    head = head_of(model.binding)
    rows = torch.arange(len(batch))[:, None]

    def log_probabilities(where: Site) -> Tensor:
        with torch.no_grad():
            residual = run.cache[where][rows.to(run.cache[where].device), columns.to(run.cache[where].device)]
            return head(residual).double().log_softmax(-1)

    final = log_probabilities(last)
    wanted = final.argmax(-1) if target is None else _targets(model, target, final)
    found = [_read(final if where == last else log_probabilities(where), wanted, top) for where in sites]
    log_p, rank, chances, ids = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
    blank = ~is_real[:, None].expand(log_p.shape).numpy()
    settings = {
        "site": site,
        "top": top,
        "target": "own" if target is None else "given",
        "prompts": len(batch),
        "bos": batch.bos,
    }
    arrays = _Axes(
        coords={"layer": [where.layer or 0 for where in sites], "pos": labels},
        texts={"pos": model.reader.strings([batch.row(0)[label] for label in labels])}
        if len(batch) == 1
        else {},
        conventions={"lens": site, "target": settings["target"]},
        is_single=len(batch) == 1,
    )
    texts = {str(index): model.reader.strings([index])[0] for index in sorted(set(ids.flatten().tolist()))}
    return LogitLens(
        log_probability=arrays.array(log_p, blank, "nats", "log-probability of the target"),
        rank=arrays.array(rank, blank, "rank", "rank of the target"),
        probabilities=arrays.array(chances, blank, "probability", "most probable tokens"),
        token_ids=arrays.array(ids, None, "id", "most probable tokens"),
        tokens=texts,
        settings=settings,
        model=model.fingerprint,
        data_sha256=hash_of(batch),
    )


def columns_of(batch: TokenBatch, positions: int | Sequence[int] | None) -> tuple[list[int], Tensor, Tensor]:
    """Labels, columns [batch, n] and whether they are real tokens, [batch, n], of positions in each row.

    Raises:
        PositionOutOfRange: a position that some prompt has not.
    """
    width = batch.shape[1]
    shortest = int(batch.n_real.min())
    if positions is None:
        labels = list(range(-width, 0)) if batch.is_padded else list(range(width))
    else:
        labels = [positions] if isinstance(positions, int) else [int(position) for position in positions]
        outside = [label for label in labels if not -shortest <= label < shortest]
        if outside or not labels:
            raise PositionOutOfRange(
                "Some prompt has no such position.",
                got=str(labels),
                because=f"the shortest has {shortest} tokens",
            )
    wanted = torch.tensor(labels)[None]
    columns = torch.where(wanted < 0, width + wanted, batch.n_pad[:, None] + wanted)
    return labels, columns, columns >= batch.n_pad[:, None]


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """What all arrays of one lens share; turns [prompt, layer, pos, ...] tensors into them."""

    coords: dict[str, Any]
    texts: dict[str, list[str]]
    conventions: dict[str, Any]
    is_single: bool

    def array(self, values: Tensor, blank: np.ndarray | None, unit: str, title: str) -> LabelledArray:
        numbers = values.cpu().numpy()
        if blank is not None:
            mask = blank if numbers.ndim == blank.ndim else blank[..., None]
            numbers = np.where(mask, np.nan, numbers.astype(float))
        dims = ["prompt", "layer", "pos", *(["place"] if numbers.ndim == 4 else [])]
        if self.is_single:
            numbers, dims = numbers[0], dims[1:]
        return LabelledArray(
            numbers,
            dims,
            coords=self.coords,
            texts=self.texts,
            unit=unit,
            title=title,
            conventions=self.conventions,
        )


def _residual_sites(model: Model, name: str) -> list[Site]:
    sites = model.binding.select(name if "." in name else f"{name}.*")
    if any(site.point not in RESIDUAL_POINTS for site in sites):
        raise InterventionMismatch(
            "The logit lens reads the residual stream.",
            got=name,
            because="another tensor is not what the final norm and the unembedding take",
            instead=", ".join(RESIDUAL_POINTS) + "; for what a component adds: direct_logit_attribution",
        )
    return sites


def _targets(model: Model, target: Any, like: Tensor) -> Tensor:
    items = [target] if isinstance(target, int | str) else list(target)
    ids = torch.tensor([model.token(item) if isinstance(item, str) else int(item) for item in items])
    refuse_unknown_ids(ids, like.shape[-1])
    if len(ids) not in (1, like.shape[0]):
        raise ShapeError(
            "The lens follows one token for all prompts, or one each.",
            got=f"{len(ids)} targets, {like.shape[0]} prompts",
            instead="one target, or one a prompt",
        )
    return ids.to(like.device)[:, None].expand(like.shape[:2])


def _read(log_p: Tensor, wanted: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability and rank of the target, probabilities and ids of the best k."""
    at_target = log_p.gather(-1, wanted[..., None])
    best = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    return at_target[..., 0], (log_p > at_target).sum(-1), best.values.exp(), best.indices
