"""causal_trace: noise on the subject's embeddings destroys an answer; which restored place brings it back?

The noise is written at the first layer's input, which differs from the embeddings by position terms that it leaves
alone, so that every cell is one experiment of one plan. All cells of a prompt see the same noise.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.cells import sites_of
from mechscope.engine.execute import Progress, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.pairs import hash_of_prompts
from mechscope.engine.places import Places, each_position, places_of
from mechscope.figures.labelled import LabelledArray
from mechscope.interventions.metrics import Metric, ProbabilityDifference, answer_sets
from mechscope.interventions.replace import Patch, patch
from mechscope.models.inputs import Inputs, TokenBatch, refuse_unknown_ids
from mechscope.models.limits import refuse_unless_asked_last
from mechscope.models.model import Model
from mechscope.patching.donors import run_source
from mechscope.patching.trace_result import CausalTrace
from mechscope.patching.trace_settings import TraceSettings, window_around
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadPairs, InterventionMismatch, PositionOutOfRange
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import PerRow

EMBEDDED = Site("resid_pre", 0)


def causal_trace(
    model: Model,
    prompts: Inputs,
    *,
    subject: int | Sequence[int] | Sequence[Sequence[int]],
    answers: Sequence[int | str] | int | str,
    site: str = "resid_post",
    settings: TraceSettings | None = None,
    progress: Progress | None = None,
) -> CausalTrace:
    """Add noise to the subject's embeddings, restore one place at a time, and measure the answer's probability.

    Args:
        model: An open model.
        prompts: Text, ids or a batch; one row is one fact.
        subject: Positions of the subject's tokens: a list for all prompts, or one list a prompt.
        answers: The right next token, one a prompt (or one for all): an id, or a word that is one token. Of a masked
            language model: the right token in the place of the mask that ends the prompt.
        site: "resid_post", "attn_out" or "mlp_out" (or another point of the width of the residual stream).
        settings: Noise level, draws, window, seed; `TraceSettings()` by default.
        progress: Told rows done and rows in all.

    Returns:
        `values` [layer, pos], the indirect effect in probability, and `total_effect`. Prompts of several lengths
        have their positions counted from the end.

    Raises:
        BadPairs: another number of answers or subjects than of prompts.
        PositionOutOfRange: a subject outside its prompt.
        NoNextToken: a masked language model, and a prompt that does not end in the mask.

    Cost: draws x layers x positions behind the subject's first token, each from the restored place on; one run a
        draw under its noise, and one clean run.
    Caveat: says where restoring *this* value undoes *this* noise, not where a fact is stored.
        docs/methods/causal_tracing.md.
    """
    settings = settings or TraceSettings()
    batch = model.tokens(prompts)
    refuse_unless_asked_last(model.binding.anatomy, model.tokenizer, batch.ids, "A causal trace")
    spans = _spans(subject, batch)
    right = answer_sets(_answer_ids(model, answers, batch))
    metric = ProbabilityDifference(answers=right, wrong=((),) * len(right))
    sites = sites_of(model, site)
    if sites[0].row.axes != EMBEDDED.row.axes:
        raise InterventionMismatch(
            f"Causal tracing restores whole vectors of the residual stream's width, not {sites[0].point}.",
            got=site,
            instead="resid_post, attn_out or mlp_out",
        )
    places = places_of(each_position([batch]), model, batch)
    every = sites_of(model, sites[0].point)
    clean = run_source(model, batch, sites=sorted({EMBEDDED, *every}), metric=metric)
    embedded = clean.donors[EMBEDDED].tensor_at(EMBEDDED)
    scale = settings.noise * subject_spread(embedded, batch, spans)
    noisy = [
        patch(EMBEDDED, embedded + scale * draw, positions=[list(span) for span in spans])
        for draw in _draws(embedded, batch, spans, settings)
    ]
    width = settings.width_at(sites[0].point)
    cells = [
        tuple(patch(near, clean.donors[near], positions=selection) for near in window)
        for window in _windows(sites, every, width)
        for selection in places.selections
    ]
    table = _measure(model, batch, metric, noisy, cells=cells, progress=progress)
    facts = {"site": site, **asdict(settings), "window": width, "noise_level": scale}
    facts |= {"subject": spans, "bos": batch.bos}
    return _result(model, batch, sites, places, table, clean=clean.measured.numpy(), facts=facts)


def subject_spread(embedded: Tensor, batch: TokenBatch, spans: Sequence[Sequence[int]]) -> float:
    """Standard deviation of all entries of the subjects' embeddings."""
    rows = [
        embedded[row, int(batch.n_pad[row]) + position] for row, span in enumerate(spans) for position in span
    ]
    return float(torch.stack(rows).double().std(correction=0))


def _draws(
    embedded: Tensor, batch: TokenBatch, spans: Sequence[Sequence[int]], settings: TraceSettings
) -> list[Tensor]:
    """Standard normal noise at the subjects' tokens, zero elsewhere, one tensor a draw."""
    draws: list[Tensor] = []
    for draw in range(settings.n_draws):
        noise = torch.zeros_like(embedded)
        for row, span in enumerate(spans):
            values = generator_for(settings.seed, "causal trace", draw, row).standard_normal(
                (len(span), embedded.shape[-1])
            )
            columns = [int(batch.n_pad[row]) + position for position in span]
            noise[row, columns] = torch.from_numpy(values).to(noise)
        draws.append(noise)
    return draws


def _windows(sites: Sequence[Site], every: Sequence[Site], width: int) -> list[list[Site]]:
    """The sites that are restored together for each layer of the result."""
    return [[every[near] for near in window_around(every.index(site), width, len(every))] for site in sites]


def _measure(
    model: Model,
    batch: TokenBatch,
    metric: Metric,
    noisy: Sequence[Patch],
    *,
    cells: Sequence[tuple[Patch, ...]],
    progress: Progress | None,
) -> np.ndarray:
    """Probability of the answer, mean over draws: nothing restored, then each cell, [1 + cell, prompt]."""
    first = _first_written(noisy[0])
    experiments: list[Experiment] = []
    index_of: list[list[int]] = []
    for noise in noisy:
        start = len(experiments)
        experiments.append(Experiment(inputs=batch, writes=(noise,), metric=metric, name="noise"))
        indices = [start]
        for cell in cells:
            if _is_before(cell[0], first):  # nothing differs there yet
                indices.append(start)
                continue
            indices.append(len(experiments))
            experiments.append(
                Experiment(inputs=batch, writes=(noise, *cell), metric=metric, name=cell[0].at)
            )
        index_of.append(indices)
    found = run_experiments(model, experiments, progress=progress).table().numpy()
    return np.mean([found[indices] for indices in index_of], axis=0)


def _first_written(noise: Patch) -> int:
    """First position of any subject."""
    spans = noise.where.positions
    assert isinstance(spans, PerRow)
    return min(position for span in spans.positions for position in span)


def _is_before(restoration: Patch, first: int) -> bool:
    positions = restoration.where.positions
    return isinstance(positions, tuple) and all(0 <= position < first for position in positions)


def _spans(subject: Any, batch: TokenBatch) -> list[list[int]]:
    """Positions of each prompt's subject, counted from its start."""
    items: list[Any] = [subject] if isinstance(subject, int) else list(subject)
    flat = [position for item in items for position in ([item] if isinstance(item, int) else item)]
    if any(isinstance(position, str) for position in flat):
        raise PositionOutOfRange(
            "A subject is told by the positions of its tokens.",
            got=repr(subject),
            because="a word may be several tokens, and be there more than once",
            instead="model.str_tokens(prompt) shows the positions, counted from 0: subject=[2, 3]",
        )
    rows = [list(item) for item in items] if items and not isinstance(items[0], int) else [items] * len(batch)
    if len(rows) != len(batch):
        raise BadPairs(
            "Each prompt needs its subject.",
            got=f"{len(rows)} subjects, {len(batch)} prompts",
            instead="one list a prompt",
        )
    lengths = batch.n_real.tolist()
    for row, (span, length) in enumerate(zip(rows, lengths, strict=True)):
        if not span or any(not -length <= position < length for position in span):
            raise PositionOutOfRange(
                f"Prompt {row} has no such subject.",
                got=f"positions {span}",
                because=f"it has {length} tokens",
                instead="positions of the subject's tokens, counted from 0",
            )
    return [
        sorted({position % length for position in span}) for span, length in zip(rows, lengths, strict=True)
    ]


def _answer_ids(model: Model, answers: Any, batch: TokenBatch) -> list[int]:
    items = [answers] if isinstance(answers, int | str) else list(answers)
    ids = [model.token(item) if isinstance(item, str) else int(item) for item in items]
    refuse_unknown_ids(ids, model.d_vocab)
    ids = ids * len(batch) if len(ids) == 1 else ids
    if len(ids) != len(batch):
        raise BadPairs(
            "Each prompt needs one answer.",
            got=f"{len(ids)} answers, {len(batch)} prompts",
            instead="as many answers as prompts",
        )
    return ids


def _result(
    model: Model,
    batch: TokenBatch,
    sites: Sequence[Site],
    places: Places,
    table: np.ndarray,
    *,
    clean: np.ndarray,
    facts: dict[str, Any],
) -> CausalTrace:
    corrupted = table[0]
    conventions = {
        "noise": f"{facts['noise']:g} sd",
        "draws": facts["n_draws"],
        "window": facts["window"],
        "prompts": len(batch),
    }
    per_prompt = LabelledArray(
        (table[1:] - corrupted).reshape(len(sites), len(places.labels), len(batch)),
        ("layer", "pos", "prompt"),
        coords={"layer": [site.layer or 0 for site in sites], "pos": places.labels},
        texts={"pos": places.texts} if places.texts else {},
        unit="probability",
        title=f"{facts['site']}: indirect effect of restoring it",
        conventions=conventions,
    )
    return CausalTrace(
        per_prompt=per_prompt,
        clean=LabelledArray(clean, ("prompt",), unit="probability", title="clean"),
        corrupted=LabelledArray(corrupted, ("prompt",), unit="probability", title="noise, nothing restored"),
        settings=facts,
        model=model.fingerprint,
        data_sha256=hash_of_prompts(batch),
    )
