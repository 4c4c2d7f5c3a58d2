"""Filtering by correctness: said, counted, and shown with both figures.

Owns: `only_correct`. A mechanism is often looked for where the model succeeds, but success chosen afterwards flatters
every number, so the recipe of what is left says how much was left out and how the whole did.
"""

import numpy as np

from mechscope.behaviors.baseline import measure_correct
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NotEnoughEvidence


def only_correct(behavior: Behavior, model: Model) -> Behavior:
    """Keep the pairs whose clean prompt the model answers rightly; see `Behavior.only_correct`."""
    kept: dict[str, Split] = {}
    figures: dict[str, dict[str, float | int]] = {}
    for name, split in behavior.splits.items():
        correct = measure_correct(model, split)
        rows = np.flatnonzero(correct > 0).tolist()
        figures[name] = {
            "n_before": len(split),
            "n_after": len(rows),
            "accuracy_before": float(correct.mean()),
            "accuracy_after": 1.0 if rows else float("nan"),
        }
        if rows:
            kept[name] = split.select(rows)
    if "train" not in kept:
        raise NotEnoughEvidence(
            f'The model gets no clean prompt of "{behavior.name}" right.',
            got=f"accuracy 0 of {len(behavior.train)}",
            because="nothing would be left to explain",
            instead="ms.behaviors.measure(model, behavior) shows what it does do",
        )
    rule = "the answer beats every foil" if behavior.train.wrong else "the answer is the top token"
    change = {
        "kind": "only_correct",
        "rule": rule,
        "model": model.fingerprint.model_dump(),
        "splits": figures,
        "told": _told(rule, figures),
    }
    return behavior.changed(kept, change, draw_again=_refuse_redraw)


def _told(rule: str, figures: dict[str, dict[str, float | int]]) -> str:
    shown = [
        f"{name} {entry['n_after']} of {entry['n_before']} "
        f"(accuracy {entry['accuracy_before']:.3f} before, {entry['accuracy_after']:.3f} after)"
        for name, entry in figures.items()
    ]
    return f"only correct prompts are kept ({rule}): {', '.join(shown)}"


def _refuse_redraw(behavior: Behavior, seed: int) -> Behavior:
    raise NotEnoughEvidence(
        f'Fresh prompts of "{behavior.name}" would not be filtered.',
        got=f"seed={seed}",
        because="these were filtered by a model, which a behaviour does not hold",
        instead=f"load it again, .redraw({seed}), then .only_correct(model)",
    )
