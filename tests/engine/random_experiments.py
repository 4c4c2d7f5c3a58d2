"""Random experiments for tests: any intervention at any writable site, any selection, any metric."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from mechscope.engine.experiment import Experiment
from mechscope.interventions.ablation import ablate
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, METRICS, Metric, UserMetric, answer_sets
from mechscope.interventions.replace import freeze, patch
from mechscope.interventions.steering import add, cap, project_out, scale
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Matching, Where
from nudge import Nudge
from tiny_models import VOCABULARY

Draw = Callable[..., Any]
LENGTHS = (9, 9, 6, 9)
SHARED = torch.randint(0, VOCABULARY, (3,), generator=torch.Generator().manual_seed(99)).tolist()


def prompts(model: Model, seed: int) -> TokenBatch:
    """Four prompts, one shorter; those of two seeds share their first three tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, model.d_vocab, (n,), generator=generator).tolist() for n in LENGTHS]
    return batch_of([SHARED + row[3:] for row in rows], pad_id=0)


POSITIONS = [None, -1, 0, 3, [1, -2], slice(2, 5), Matching((SHARED[1],))]
POSITIONS += [[[0], [1, 2], [5], [8, 3]], [[], [2], [], []]]
KINDS = ["patch", "scale", "zero", "mean", "resample", "add", "rotate", "norm_preserving", "project", "cap"]
KINDS += ["freeze", "nudge"]


def random_write(draw: Draw, model: Model, donors: TokenBatch) -> Any:
    """Any intervention at any writable site, with any selection."""
    site = draw(st.sampled_from([s for s in model.binding.formed if s.row.is_writable]))
    positions = draw(st.sampled_from(POSITIONS))
    where = {"positions": positions, "rows": draw(st.sampled_from([None, None, [0, 2], [3]]))}
    n_heads = {"head": model.n_heads, "kv_head": model.n_kv_heads}
    axis = next((a for a in site.row.axes if a in n_heads), None)
    where["heads"] = draw(st.sampled_from([None, [0], [n_heads[axis] - 1]])) if axis else None
    width = model.sizes.get(site.row.axes[-1])
    if width is not None and not site.row.is_attention_map and site.point != "sink":
        where["units"] = draw(st.sampled_from([None, None, [0, width - 1]]))
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return _narrowed(_write_of(kind, site, model, donors, generator), where)


def _narrowed(write: Any, where: dict[str, Any]) -> Any:
    chosen = {name: tuple(where[name]) for name in ("rows", "heads", "units") if where.get(name) is not None}
    return replace(write, where=replace(Where.of(where["positions"]), **chosen))


def _write_of(kind: str, site: Site, model: Model, donors: TokenBatch, generator: torch.Generator) -> Any:
    is_choice, is_map = site.point == "expert_choice", site.row.is_attention_map
    width = None if is_map or is_choice or site.point == "sink" else model.sizes.get(site.row.axes[-1])
    if kind == "nudge":
        return Nudge(str(site))
    if kind in ("patch", "freeze") or is_choice:
        run = model.run(donors, capture=[site])
        return patch(site, run) if kind != "freeze" else freeze(site, to=run)
    if kind == "scale":
        return scale(site, 0.3)
    if kind == "zero":
        return ablate(site, "zero")
    if kind in ("mean", "resample") and not is_map and site.point != "sink":
        return ablate(site, kind, reference=donors)
    if width is not None:
        direction = torch.randn(width, generator=generator, dtype=torch.float64)
        if kind == "project":
            return project_out(site, direction)
        if kind == "cap":
            return cap(site, direction, at_most=0.1)
        if kind in ("rotate", "norm_preserving"):
            return add(site, direction, dose=0.4, mode=kind)
        return add(site, direction, absolute=[0.7, -0.2, 0.0, 1.5])
    return Nudge(str(site))


def random_metric(draw: Draw, model: Model) -> Metric:
    """Any metric, at any position."""
    right, wrong = answer_sets([[1, 9], [2], [3], [4]]), answer_sets([[5], [6, 11], [7], [8]])
    kind = draw(st.sampled_from([*METRICS, "kl", "user"]))
    position = draw(st.sampled_from([-1, -1, -2, 0, 3]))
    if kind == "kl":
        reference = torch.randn(4, model.sizes["d_vocab"], generator=torch.Generator().manual_seed(5))
        return KL(reference=Value(reference), position=position)
    if kind == "user":
        return UserMetric(function=lambda logits: logits.sin().sum((1, 2)), positions=(-1, 2))
    return METRICS[kind](answers=right, wrong=wrong, position=position)


def random_experiments(data: st.DataObject, model: Model) -> list[Experiment]:
    """Four experiments over two sets of prompts; some share their first write."""
    sets, corrupt = (prompts(model, 0), prompts(model, 2)), prompts(model, 1)
    shared = random_write(data.draw, model, corrupt)
    made = []
    for n in range(4):
        writes = [random_write(data.draw, model, corrupt) for _ in range(data.draw(st.integers(0, 3)))]
        first = [shared] if data.draw(st.booleans()) else []
        inputs, metric = sets[data.draw(st.integers(0, 1))], random_metric(data.draw, model)
        made.append(Experiment(inputs=inputs, writes=(*first, *writes), metric=metric, name=f"{n}"))
    return made
