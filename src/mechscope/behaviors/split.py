"""Split: the prompts of one split, clean and corrupt, with what is measured on them.

Owns: batches, metric, labels and the hash of the data. Invariant: row i of everything is the same pair, and both
prompts of a pair are equally long, so position p of one can be patched into position p of the other.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int

from mechscope.data.pairs import TokenPair
from mechscope.data.splits import groups_of
from mechscope.interventions.generated_text import GeneratedText
from mechscope.interventions.metrics import METRICS, Answers, Metric
from mechscope.models.inputs import Bos, TokenBatch, batch_of
from mechscope.records.canonical import hash_json
from mechscope.vocabulary.errors import BadPairs

MOST_SHOWN = 3
FEW_UNITS = 20
"""A verdict needs as many; with fewer, an interval is rough."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Prompts of one split.

    Args:
        name: "train", "validation" or "held_out".
        behavior: Name of the behaviour.
        clean: Clean prompts, left-padded.
        corrupt: Their corrupt twins: same lengths, same padding.
        metric: What is read; larger is more of the behaviour, so clean is meant to exceed corrupt.
        answers: Right answers after the clean prompt, a set of token ids each.
        wrong: Foils, a set each; () if the metric has none.
        entities: What each prompt is about, the most important first; () where nothing is known.
        templates: Wording of each prompt.
        texts: (clean, corrupt) as text, for display.
    """

    name: str
    behavior: str
    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric
    answers: Answers
    wrong: Answers
    entities: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 over ids, padding and answers: whatever is measured, these are the prompts."""
        return hash_json(
            {
                "clean": self.clean.ids.tolist(),
                "corrupt": self.corrupt.ids.tolist(),
                "n_pad": self.clean.n_pad.tolist(),
                "answers": self.answers,
                "wrong": self.wrong,
            }
        )

    @cached_property
    def labels_hash(self) -> str:
        """SHA-256 over entities and templates, on which intervals depend."""
        return hash_json({"entities": self.entities, "templates": self.templates})

    @cached_property
    def units(self) -> Int[np.ndarray, " prompt"]:
        """A number per prompt; prompts of one number count as one observation.

        Prompts that are linked through shared entities; where that links most of them into one, prompts about
        the same first entity. Claims form their own units from `entities` and `templates`, with care for both.
        """
        groups = groups_of(self.entities)
        if max(Counter(groups).values()) > len(groups) / 2:
            groups = groups_of([names[:1] for names in self.entities])
        return np.array(groups, dtype=np.int64)

    @property
    def n_units(self) -> int:
        """Distinct units."""
        return len(np.unique(self.units))

    def select(self, rows: Sequence[int]) -> "Split":
        """Some of the pairs, in the order given."""
        rows = list(rows)
        return replace(
            self,
            clean=self.clean.select(rows),
            corrupt=self.corrupt.select(rows),
            metric=self.metric.select(rows),
            answers=tuple(self.answers[row] for row in rows),
            wrong=tuple(self.wrong[row] for row in rows) if self.wrong else (),
            entities=tuple(self.entities[row] for row in rows),
            templates=tuple(self.templates[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
        )

    def with_metric(self, kind: str | GeneratedText) -> "Split":
        """The same prompts, measured otherwise; see `Behavior.metric_as`."""
        if isinstance(kind, GeneratedText):
            return replace(self, metric=kind.of_answers(self.answers))
        return replace(self, metric=metric_of(kind, self.answers, self.wrong))

    def __str__(self) -> str:
        lines = [f"{self.behavior}, {self.name}: {len(self)} pairs, {self.metric.kind}"]
        for clean, corrupt in self.texts[:MOST_SHOWN]:
            lines += [f"  clean    {clean}", f"  corrupt  {corrupt}"]
        return "\n".join(lines)


def split_of(
    name: str,
    pairs: Sequence[TokenPair],
    *,
    behavior: str,
    metric: str,
    pad_id: int,
    bos: Bos = "given",
) -> Split:
    """A split of pairs that were read already.

    Args:
        name: Its name.
        pairs: At least one; lengths may differ from pair to pair, not within one.
        behavior: Name of the behaviour.
        metric: Kind of metric.
        pad_id: Id written into padding columns; they are masked.
        bos: What was done about the beginning-of-sequence token.
    """
    answers = tuple(pair.answers for pair in pairs)
    has_wrong = any(pair.wrong for pair in pairs)
    wrong = tuple(pair.wrong for pair in pairs) if has_wrong else ()
    return Split(
        name=name,
        behavior=behavior,
        clean=batch_of([pair.clean for pair in pairs], pad_id=pad_id, bos=bos),
        corrupt=batch_of([pair.corrupt for pair in pairs], pad_id=pad_id, bos=bos),
        metric=metric_of(metric, answers, wrong),
        answers=answers,
        wrong=wrong,
        entities=tuple(pair.entities for pair in pairs),
        templates=tuple(pair.template for pair in pairs),
        texts=tuple(pair.texts for pair in pairs),
    )


def metric_of(kind: str, answers: Answers, wrong: Answers) -> Metric:
    """A metric of answers by its name.

    Raises:
        BadPairs: no such metric, or one that needs foils where there are none.
    """
    if kind not in METRICS:
        raise BadPairs("There is no such metric.", got=repr(kind), instead=", ".join(METRICS))
    needs_foils = kind in ("logit_difference", "probability_difference")
    if needs_foils and (not wrong or not all(wrong)):
        raise BadPairs(
            f"A {kind.replace('_', ' ')} needs a wrong answer for every pair.",
            got=f"{sum(map(bool, wrong))} of {len(answers)} pairs have one",
            because="it is the answer's value less the foil's",
            instead='give wrong answers, or metric="log_probability"',
        )
    # A pair without a foil would count as right whatever the model says.
    foils = wrong if kind != "accuracy" or all(wrong) else ()
    return METRICS[kind](answers=answers, wrong=foils)


def usual_metric(pairs: Sequence[TokenPair]) -> str:
    """Log-probability where there are no foils, probability difference for sets, else logit difference."""
    if not all(pair.wrong for pair in pairs):
        return "log_probability"
    is_of_sets = any(len(pair.answers) > 1 or len(pair.wrong) > 1 for pair in pairs)
    return "probability_difference" if is_of_sets else "logit_difference"
