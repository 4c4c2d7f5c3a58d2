"""attention_patterns: where each token of one prompt looks, head by head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from mechscope.figures.attention import AttentionView
from mechscope.figures.labelled import Label, LabelledArray
from mechscope.lenses.result import LensResult, hash_of
from mechscope.models.inputs import Inputs
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PositionOutOfRange, ShapeError

MOST_PANELS = 16
Head = str | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AttentionPatterns(LensResult):
    """Result of `attention_patterns`.

    Args:
        values: [head, query, key], heads named "layer.head"; weights 0 to 1, rows sum to 1 less what a sink takes;
            0 where the mask forbids.
    """

    lens: ClassVar[str] = "attention-patterns"
    values: LabelledArray

    def view(self, heads: Sequence[Head] | None = None) -> AttentionView:
        """Linked panels for a report or a notebook, one a head; at most 16."""
        return AttentionView(self._few(heads))

    def plot(self, heads: Sequence[Head] | None = None) -> Any:
        """Plotly small multiples, one a head; at most 16."""
        return self._few(heads).plot()

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "largest"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k largest weights, the first token's column left out: heads rest there when they do nothing."""
        coords = self.values.coords["key"]
        return self.values.sel(key=coords[1:] if len(coords) > 1 else coords).top(k, by)

    def __repr__(self) -> str:
        return f"AttentionPatterns\n{self.values!r}"

    def _repr_html_(self) -> str:
        return self.view(self.values.coords["head"][:MOST_PANELS])._repr_html_()  # pyright: ignore

    def _few(self, heads: Sequence[Head] | None) -> LabelledArray:
        chosen = self.values if heads is None else self.values.sel(head=[head_name(head) for head in heads])
        if chosen.shape[0] > MOST_PANELS:
            raise ShapeError(
                "That is too many heads for one figure.",
                got=f"{chosen.shape[0]} heads",
                instead=f'at most {MOST_PANELS}: heads=["0.3", "1.1"]',
            )
        return chosen


def attention_patterns(
    model: Model, prompt: Inputs, *, heads: Sequence[Head] | None = None
) -> AttentionPatterns:
    """Attention weights of some heads on one prompt.

    Args:
        model: An open model.
        prompt: One prompt.
        heads: Names "layer.head" or pairs (layer, head); None is all of them.

    Returns:
        `values` [head, query, key].

    Raises:
        PointUnavailable: this family's patterns are out of reach.
        ShapeError: several prompts.

    Cost: one run up to the last layer asked for, and the square of the prompt's length for each head kept.
    Caveat: a weight says where a head looks, not whether what it moves matters. docs/methods/attention_heads.md.
    """
    batch = model.tokens(prompt)
    if len(batch) != 1:
        raise ShapeError(
            "Attention patterns are shown for one prompt.",
            got=f"{len(batch)} prompts",
            instead="one at a time",
        )
    wanted = all_heads(model) if heads is None else [_head(model, head) for head in heads]
    sites = {layer: model.binding.site(("pattern", layer)) for layer, _ in wanted}
    run = model.run(batch, capture=sorted(sites.values()), stop_after=max(sites.values()))
    found = {layer: run.cache[site][0].detach().double().cpu().numpy() for layer, site in sites.items()}
    names = [head_name(head) for head in wanted]
    texts = model.reader.strings(batch.row(0))
    values = LabelledArray(
        np.stack([found[layer][head] for layer, head in wanted]),
        ("head", "query", "key"),
        coords={"head": names},
        texts={"query": texts, "key": texts},
        unit="attention weight",
        title="attention patterns",
    )
    return AttentionPatterns(
        values=values,
        settings={"heads": names, "bos": batch.bos},
        model=model.fingerprint,
        data_sha256=hash_of(batch),
    )


def all_heads(model: Model) -> list[tuple[int, int]]:
    """Every head of a model as (layer, head)."""
    return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]


def head_name(head: Head) -> str:
    """The name "layer.head" of a head."""
    return head if isinstance(head, str) else f"{head[0]}.{head[1]}"


def _head(model: Model, given: Head) -> tuple[int, int]:
    parts = head_name(given).split(".")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(parts) != 2 or len(numbers) != 2 or numbers[0] >= model.n_layers or numbers[1] >= model.n_heads:
        raise PositionOutOfRange(
            "There is no such head.",
            got=repr(given),
            because=f"there are {model.n_layers} layers of {model.n_heads} heads",
            instead='"0.3" or (0, 3)',
        )
    return numbers[0], numbers[1]
