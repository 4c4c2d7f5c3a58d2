"""Behavior: prompts and a metric: what a model is supposed to do, measurably.

Owns: the three splits and the recipe by which they can be made again. Refuses splits that share an entity or a
prompt. Invariant: `.clean`, `.corrupt` and `.metric` are the train split's, so looking never opens the held-out one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mechscope.behaviors.split import Split
from mechscope.data.splits import SPLITS, refuse_shared_entities
from mechscope.interventions.generated_text import GeneratedText
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs, NotEnoughEvidence

MIN_HELD_OUT = 100
"""A claim on fewer held-out prompts is inconclusive."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the prompts come from.

    Args:
        source: "village", "templates", "file", "tokens", or a plug-in's name.
        settings: What the source was told: version, n, seed, and what it reports of itself. JSON.
        changes: What was done to the prompts since, in order: filters, fresh draws. JSON.
        notes: What a reader of a result should know.
    """

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Behavior:
    """Prompts in three splits, and what is measured on them.

    Args:
        name: What claims and reports call it.
        splits: By name. "train" is always there; the others are missing where there are too few pairs.
        provenance: Where the prompts come from.
        draw_again: From a seed to a behaviour of new prompts; None where there is no generator.

    Raises:
        BadPairs: two splits share an entity or a prompt, or there is no train split.
    """

    name: str
    splits: Mapping[str, Split]
    provenance: Provenance
    draw_again: Callable[["Behavior", int], "Behavior"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if "train" not in self.splits or not set(self.splits) <= set(SPLITS):
            raise BadPairs(
                f'"{self.name}" needs a train split.', got=sorted(self.splits), instead=", ".join(SPLITS)
            )
        refuse_shared_entities({name: split.entities for name, split in self.splits.items()}, of=self.name)
        self._refuse_shared_prompts()

    @property
    def train(self) -> Split:
        """Prompts to find a mechanism on."""
        return self.splits["train"]

    @property
    def validation(self) -> Split:
        """Prompts to choose doses, thresholds and layers on. Refused where there are too few pairs."""
        return self._split("validation")

    @property
    def held_out(self) -> Split:
        """Prompts to test a claim on, and for nothing else. Refused where there are too few pairs."""
        return self._split("held_out")

    @property
    def clean(self) -> TokenBatch:
        """Clean prompts of the train split."""
        return self.train.clean

    @property
    def corrupt(self) -> TokenBatch:
        """Corrupt prompts of the train split."""
        return self.train.corrupt

    @property
    def metric(self) -> Metric:
        """The metric on the train split."""
        return self.train.metric

    @property
    def sizes(self) -> dict[str, int]:
        """Pairs of each split, 0 where it is missing."""
        return {name: len(self.splits[name]) if name in self.splits else 0 for name in SPLITS}

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def recipe(self) -> dict[str, Any]:
        """Everything that identifies the prompts, as JSON: the part of a claim that says on which data."""
        splits = {
            name: {
                "n": len(split),
                "n_units": split.n_units,
                "data_sha256": split.data_hash,
                "labels_sha256": split.labels_hash,
            }
            for name, split in self.splits.items()
        }
        return {
            "name": self.name,
            "source": self.provenance.source,
            "settings": dict(self.provenance.settings),
            "changes": [dict(change) for change in self.provenance.changes],
            "notes": self.notes,
            "metric": _told_metric(self.metric),
            "bos": self.train.clean.bos,
            "splits": splits,
        }

    @property
    def notes(self) -> list[str]:
        """What a reader of a result should know of the prompts."""
        n_held_out = self.sizes["held_out"]
        short = [] if n_held_out >= MIN_HELD_OUT else [_too_small(n_held_out)]
        return [*self.provenance.notes, *short]

    def metric_as(self, kind: str | GeneratedText) -> "Behavior":
        """The same prompts, measured otherwise.

        Args:
            kind: "logit_difference", "log_probability", "probability_difference", "rank" or "accuracy"; or a
                `GeneratedText`, for claims about what the model writes on these prompts.

        Raises:
            BadPairs: no such metric, or one that needs foils where there are none.
        """
        splits = {name: split.with_metric(kind) for name, split in self.splits.items()}
        return replace(self, splits=splits)

    def redraw(self, seed: int) -> "Behavior":
        """New held-out prompts from the same generator; none of them is among the known ones.

        Train and validation stay: a mechanism that was found on them is tested on what is new.

        Raises:
            NotEnoughEvidence: there is no generator (a user's file), it has no more prompts, or the prompts
                were filtered by a model, which is not at hand here.
        """
        if self.draw_again is None:
            raise NotEnoughEvidence(
                f'"{self.name}" has no more prompts to draw.',
                got=f"source: {self.provenance.source}",
                because="they were given as a list, and no generator knows how to write others like them",
                instead="give more pairs, or use a behaviour of ms.behaviors.names(model)",
            )
        return self.draw_again(self, seed)

    def only_correct(self, model: Model) -> "Behavior":
        """The pairs whose clean prompt `model` answers rightly, with both accuracies in the recipe.

        Right means that the answer beats every foil, or every other token where there are no foils.

        Raises:
            NotEnoughEvidence: nothing is left of the train split.

        Cost: one forward pass over the clean prompts of all splits, the held-out one included.
        Caveat: numbers on what is left speak of these prompts only, not of the behaviour.
        """
        from mechscope.behaviors.filtering import only_correct  # it builds on this class

        return only_correct(self, model)

    def changed(
        self, splits: Mapping[str, Split], change: Mapping[str, Any], *, draw_again: Any = None
    ) -> "Behavior":
        """Other prompts under the same name, with what was done written into the recipe."""
        changes = (*self.provenance.changes, change)
        provenance = replace(self.provenance, changes=changes)
        return replace(self, splits=splits, provenance=provenance, draw_again=draw_again)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {n}" for name, n in self.sizes.items())
        lines = [f"{self.name} ({self.provenance.source}): {sizes} pairs; {self.metric.kind}"]
        clean, corrupt = self.train.texts[0]
        if clean:
            lines += [f"  clean    {clean}", f"  corrupt  {corrupt}"]
        lines += [f"  {_told(change)}" for change in self.provenance.changes]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"<Behavior {str(self).splitlines()[0]}>"

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise NotEnoughEvidence(
                f'"{self.name}" has no {name} prompts.',
                got=", ".join(f"{key} {n}" for key, n in self.sizes.items()),
                because="its pairs are too few, or share too many entities, to be divided into three splits",
                instead="give more pairs (a claim needs at least 100 held-out ones), or look at .train only",
            )
        return self.splits[name]

    def _refuse_shared_prompts(self) -> None:
        seen: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
        for name, split in self.splits.items():
            for row in range(len(split)):
                prompts = tuple(split.clean.row(row)), tuple(split.corrupt.row(row))
                if seen.setdefault(prompts, name) != name:
                    raise BadPairs(
                        f'The splits of "{self.name}" share a prompt.',
                        got=f"{split.texts[row][0] or prompts[0]} in {seen[prompts]} and {name}",
                        because="a prompt that was looked at can't test what was seen on it",
                        instead="give every prompt to one split",
                    )


def _told_metric(metric: Metric) -> dict[str, Any]:
    """A metric in a recipe: which answers it reads is in the hash of each split's data."""
    if isinstance(metric, GeneratedText):
        return {key: value for key, value in metric.to_json().items() if key != "answers"} | {
            "unit": metric.unit
        }
    return {"kind": metric.kind, "position": metric.position, "unit": metric.unit}


def _too_small(n: int) -> str:
    have = "no held-out prompts" if n == 0 else f"{n} held-out {'prompt' if n == 1 else 'prompts'}"
    return f"{have}: a claim needs at least {MIN_HELD_OUT}, so a verdict would be inconclusive"


def _told(change: Mapping[str, Any]) -> str:
    return str(change.get("told", change))
