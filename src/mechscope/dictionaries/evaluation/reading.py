"""Reading: a text's activations at the sites of a dictionary, batch by batch, without padding and special tokens.

Refuses a dictionary that does not fit the model: a site that it does not form, another width; and activations that
are not numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.fitting import refuse_unless_fits
from mechscope.dictionaries.settings import Port
from mechscope.models.inputs import Inputs, TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NonFiniteActivations, NotEnoughEvidence
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Piece:
    """A batch's tokens that count.

    Args:
        batch: The prompts.
        counts: Which tokens count, [batch, pos]: real, and not special where those are left out.
        units: Prompt of each such token, over the whole text, [token].
        read: Values at the sites read, end to end, [token, d_in].
        written: Values at the sites written, [token, d_out].
    """

    batch: TokenBatch
    counts: Bool[Tensor, "batch pos"]
    units: Int[Tensor, " token"]
    read: Float[Tensor, "token d_in"]
    written: Float[Tensor, "token d_out"]


def fitted(dictionary: Dictionary, model: Model) -> Dictionary:
    """The dictionary with its ports shaped as the model's sites are.

    Raises:
        DictionaryMismatch: the model does not form a site, or with another width; all problems at once.
    """
    settings = dictionary.settings
    refuse_unless_fits(settings, model)
    sides = {
        side: tuple(_fitted_port(port, model) for port in getattr(settings, side))
        for side in ("reads", "writes")
    }
    return Dictionary(replace(settings, **sides), dictionary.tensors)


def _fitted_port(port: Port, model: Model) -> Port:
    site = model.binding.site(port.site)
    sizes = [model.sizes.get(axis) for axis in site.row.axes[2:]]
    shape = tuple(size for size in sizes if size is not None)
    return replace(port, site=site, shape=shape) if len(shape) == len(sizes) else port


def batches(model: Model, text: Inputs, *, batch_size: int) -> list[TokenBatch]:
    """The text as batches of prompts, in order."""
    whole = model.tokens(text)
    return [
        whole.select(range(start, min(start + batch_size, len(whole))))
        for start in range(0, len(whole), batch_size)
    ]


def counted(model: Model, batch: TokenBatch, *, skips_special: bool) -> Bool[Tensor, "batch pos"]:
    """Which tokens count: real ones, and not the tokenizer's special ones where they are left out."""
    real = batch.mask.bool()
    if not skips_special or model.tokenizer is None:
        return real
    return real & ~torch.isin(batch.ids, torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long))


def pieces(
    dictionary: Dictionary, model: Model, *, text: Inputs, batch_size: int = 8, skips_special: bool = True
) -> Iterator[Piece]:
    """Stream the activations of a text.

    Args:
        dictionary: Fitted to the model.
        model: An open model.
        text: Prompts.
        batch_size: Prompts at a time; changes no result.
        skips_special: Leave out the tokenizer's special tokens.

    Raises:
        NonFiniteActivations: a value is NaN or infinite.
        NotEnoughEvidence: no token counts.

    Cost: one forward pass up to the last site, batch by batch.
    """
    sites = sorted({*dictionary.reads, *dictionary.writes})
    first = n_tokens = 0
    for batch in batches(model, text, batch_size=batch_size):
        stop = None if any(site.point == "logits" for site in sites) else sites[-1]
        cache = model.run(batch, capture=sites, stop_after=stop).cache
        counts = counted(model, batch, skips_special=skips_special)
        read, written = (_flat(cache, sites, counts) for sites in (dictionary.reads, dictionary.writes))
        rows = counts.nonzero(as_tuple=True)[0]
        _refuse_unless_finite(read, written, first + rows)
        n_tokens += len(rows)
        if len(rows):
            yield Piece(batch, counts, first + rows, read, written)
        first += len(batch)
    if not n_tokens:
        raise NotEnoughEvidence(
            "There is no token to evaluate on.",
            got=f"{first} prompts",
            because="all their tokens are padding or special",
            instead="longer prompts, or skips_special=False",
        )


def flat_values(
    model: Model,
    batch: TokenBatch,
    *,
    sites: Sequence[Site],
    counts: Bool[Tensor, "batch pos"],
    units: Int[Tensor, " token"],
) -> Float[Tensor, "token d"]:
    """Values of some sites at the tokens that count, end to end.

    Raises:
        NonFiniteActivations: a value is NaN or infinite.
    """
    last = None if any(site.point == "logits" for site in sites) else max(sites)
    values = _flat(model.run(batch, capture=list(sites), stop_after=last).cache, tuple(sites), counts)
    _refuse_unless_finite(values, values, units)
    return values


def _flat(cache: object, sites: tuple[Site, ...], counts: Tensor) -> Tensor:
    values = [cache[site] for site in sites]  # pyright: ignore[reportIndexIssue]
    return torch.cat([value[counts.to(value.device)].flatten(1) for value in values], dim=1)


def _refuse_unless_finite(read: Tensor, written: Tensor, units: Tensor) -> None:
    for values in (read, written):
        bad = ~torch.isfinite(values).all(1)
        if bool(bad.any()):
            raise NonFiniteActivations(
                "An activation is not a number.",
                got=f"prompt {int(units[bad.cpu()][0])}, {int(bad.sum())} tokens",
                because="no mean over it is one, and dropping the token would be selecting",
                instead="the model in a wider dtype (bfloat16 or float32 for float16)",
            )
