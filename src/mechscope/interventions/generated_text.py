"""Generated text as a metric: how often what a model writes on a prompt mentions something.

It is read off continuations and not off logits, so only what generates can measure it: claims. The engine is refused.
How the text is made (length, temperature, seed, when interventions act) is part of the value and so of a claim.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from mechscope.interventions.metrics import Answers, Metric, Reading
from mechscope.vocabulary.errors import BadFile, InputError, InterventionMismatch, MissingTokenizer
from mechscope.vocabulary.where import Phase

PHASES = ("prompt", "generated", "both")


@dataclass(frozen=True, kw_only=True)
class GeneratedText(Metric):
    """Share of a prompt's continuations that mention any of some phrases or tokens, 0 to 1.

    Args:
        mentions: A phrase, or several phrases or token ids. A phrase counts as whole words, in its own case, in the
            text of the new tokens. () means each pair's own answers, the clean prompt's for both prompts.
        max_new_tokens: Most tokens of a continuation.
        temperature: 0 takes the most probable token.
        top_p: As in `Model.generate`.
        seed: Of sampling; each prompt has its own stream, the same with and without interventions.
        n_samples: Continuations of each prompt; more than one only where they are sampled.
        phase: When interventions act: "prompt", "generated" (on new tokens only) or "both".
        answers: Each row's own answers, once the metric belongs to a split and where it mentions nothing of its own.

    Raises:
        InputError: settings that mean nothing, all at once.
    """

    kind: ClassVar[str] = "generated_text"
    unit: ClassVar[str] = "share of continuations"
    mentions: str | int | Sequence[int | str] = ()
    max_new_tokens: int = 20
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n_samples: int = 1
    phase: Phase = "both"
    answers: Answers = ()

    def __post_init__(self) -> None:
        given = (self.mentions,) if isinstance(self.mentions, str | int) else tuple(self.mentions)
        object.__setattr__(self, "mentions", given)
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))
        problems = _problems(self)
        if problems:
            raise InputError(
                "Text generated so can't be measured.",
                got="; ".join(problems),
                because="a share of continuations needs continuations, and something to look for",
                instead='ms.GeneratedText(mentions="happy", max_new_tokens=8)',
            )

    @property
    def n_rows(self) -> int | None:
        return len(self.answers) or None

    @property
    def phrases(self) -> tuple[str, ...]:
        """What is looked for as text."""
        return tuple(one for one in self.mentions if isinstance(one, str))  # pyright: ignore[reportGeneralTypeIssues]

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is looked for as token ids."""
        return tuple(one for one in self.mentions if isinstance(one, int))  # pyright: ignore[reportGeneralTypeIssues]

    def of_answers(self, answers: Answers) -> "GeneratedText":
        """For rows with these answers; they matter only if the metric mentions nothing of its own."""
        return self if self.mentions else replace(self, answers=answers)

    def select(self, rows: Sequence[int]) -> "GeneratedText":
        return replace(self, answers=tuple(self.answers[row] for row in rows)) if self.answers else self

    def reading(self) -> Reading:
        """Refused: nothing of a single forward pass says what would be written.

        Raises:
            InterventionMismatch
        """
        raise InterventionMismatch(
            "A metric of generated text is not read off logits.",
            got=f"GeneratedText(mentions={self.mentions!r})",
            because="the model has to write on first, and the engine runs each prompt once",
            instead='a claim about this behaviour, or behavior.metric_as("log_probability")',
        )

    def share(self, rows: Sequence[Sequence[int]], tokenizer: Any = None) -> Float[np.ndarray, " prompt"]:
        """Of each prompt, the share of its continuations that mention what is looked for.

        Args:
            rows: New token ids, `n_samples` continuations of the first prompt, then of the second, ...
            tokenizer: Turns them into text, where phrases are looked for.

        Raises:
            MissingTokenizer: there are phrases and no tokenizer.
        """
        self.refuse_without(tokenizer)
        found = np.zeros(len(rows))
        for index, row in enumerate(rows):
            own = self.answers[index // self.n_samples] if self.answers else ()
            found[index] = bool({*self.tokens, *own} & set(row))
        if self.phrases:
            wanted = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self.phrases))})(?!\w)")
            texts = [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]
            found = np.maximum(found, [wanted.search(text) is not None for text in texts])
        return found.reshape(-1, self.n_samples).mean(axis=1)

    def refuse_without(self, tokenizer: Any) -> None:
        """Refuse phrases where nothing turns tokens into text.

        Raises:
            MissingTokenizer
        """
        if self.phrases and tokenizer is None:
            raise MissingTokenizer(
                "Phrases are looked for in text.",
                got=f"{self.phrases!r}, a model without a tokenizer",
                because="its continuations are token ids",
                instead="token ids: ms.GeneratedText(mentions=[11, 17])",
            )

    def refuse_outside(self, d_vocab: int) -> None:
        """Refuse token ids that the model has not.

        Raises:
            InputError
        """
        outside = [one for one in self.tokens if not 0 <= one < d_vocab]
        if outside:
            raise InputError(
                "No model writes tokens that it has not.",
                got=f"mentions {outside}",
                because=f"its vocabulary has {d_vocab} tokens, from 0",
                instead="ids of this model's tokens, or phrases",
            )

    def to_json(self, tensors: Any = None) -> dict[str, Any]:
        """JSON form; a row's own answers only where there are some."""
        saved = super().to_json(tensors) | {"mentions": list(self.mentions)}  # pyright: ignore[reportArgumentType]
        answers = saved.pop("answers")
        return saved | ({"answers": [list(row) for row in answers]} if answers else {})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "GeneratedText":
        """Inverse of `to_json`.

        Raises:
            BadFile: another kind of metric, or fields that this one has not.
        """
        known = {one.name for one in fields(cls)}
        given = {key: value for key, value in saved.items() if key not in ("kind", "unit")}
        if saved.get("kind") != cls.kind or not set(given) <= known:
            raise BadFile("not a metric of generated text", got=str(dict(saved))[:80], instead=cls.kind)
        answers = tuple(tuple(row) for row in given.pop("answers", ()))
        return cls(**given, answers=answers)


def _problems(metric: GeneratedText) -> list[str]:
    n_samples = metric.n_samples
    wrong = (
        ("an empty phrase", any(not phrase.strip() for phrase in metric.phrases)),
        ("True or False as a token", any(isinstance(one, bool) for one in metric.tokens)),
        (f"max_new_tokens={metric.max_new_tokens}", metric.max_new_tokens < 1),
        (f"temperature={metric.temperature}", not 0 <= metric.temperature < float("inf")),
        (f"top_p={metric.top_p}", not 0 < metric.top_p <= 1),
        (f"seed={metric.seed}", metric.seed < 0),
        (f"n_samples={n_samples}", n_samples < 1),
        (f"n_samples={n_samples} at temperature 0, all equal", n_samples > 1 and metric.temperature == 0),
        (f"phase={metric.phase!r}", metric.phase not in PHASES),
    )
    return [text for text, is_wrong in wrong if is_wrong]
