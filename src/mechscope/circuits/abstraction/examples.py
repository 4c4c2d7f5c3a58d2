"""Examples: prompts, what each means to a causal model, and the token that is right after it.

Owns: the two maps between the levels, prompts from settings and tokens from outputs. Refuses prompts whose answers are
no single tokens, and splits that share a prompt. Invariant: row i of everything is the same example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.abstraction.causal_model import CausalModel, Setting
from mechscope.data.splits import SPLITS, assign
from mechscope.engine.pairs import hash_of_prompts
from mechscope.models.inputs import Inputs, TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs

Word = str | int
"""An answer as people write it: a word that is one token, or a token id."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Prompts with their settings.

    Args:
        prompts: Left-padded.
        settings: A value for every input of the causal model, a prompt each.
        answers: Token id that is right after each prompt, [example].
        units: A number for each prompt; prompts of one number are not independent, [example].
        token_of: From an output of the causal model to a token id.
        position: Where the answer is read.
    """

    prompts: TokenBatch
    settings: tuple[Setting, ...]
    answers: np.ndarray
    units: np.ndarray
    token_of: Callable[[Any], int] = field(repr=False)
    position: int = -1

    @classmethod
    def of(
        cls,
        model: Model,
        high: CausalModel,
        *,
        settings: Sequence[Setting],
        prompt: Callable[[Setting], Inputs],
        answer: Callable[[Any], Word],
        position: int = -1,
    ) -> "Examples":
        """Examples from settings.

        Args:
            model: Whose tokenizer reads the prompts.
            high: Says the right output of each setting.
            settings: One a prompt; equal ones are kept once.
            prompt: From a setting to a text, or to token ids.
            answer: From an output to a word that is one token, or to a token id.
            position: Where the answer is read.

        Raises:
            BadPairs: there are no settings.
            NotOneToken: an answer that is no single token.
        """
        token_of = reading_answers(model, answer)
        written = [prompt(setting) for setting in settings]
        if not written:
            raise BadPairs("There are no settings.", got=f'of "{high.name}"', instead="one a prompt")
        prompts = model.tokens(written)
        outputs = [high.predict(setting) for setting in settings]
        found = cls(
            prompts=prompts,
            settings=tuple(settings),
            answers=np.array([token_of(output) for output in outputs], dtype=np.int64),
            units=np.arange(len(settings)),
            token_of=token_of,
            position=position,
        )
        return found.without_repeats()

    @classmethod
    def of_split(
        cls,
        model: Model,
        split: Split,
        *,
        read: Callable[[list[str]], Setting] | None = None,
        answer: Callable[[Any], Word] = str,
    ) -> "Examples":
        """Examples from the prompts of a behavior's split, clean and corrupt; units are the split's own.

        Args:
            model: Whose tokenizer shows the tokens.
            split: Its answers are those of the clean prompts; the foils those of the corrupt ones, which are left
                out where a pair has no foil.
            read: From a prompt's tokens, as text, to a setting. None gives {"tokens": tuple of them}.
            answer: From an output of the causal model to a word that is one token, or to a token id.
        """
        read = read or (lambda words: {"tokens": tuple(words)})
        sides = [(split.clean, split.answers)]
        sides += [(split.corrupt, split.wrong)] if split.wrong and all(split.wrong) else []
        rows = [batch.row(row) for batch, _ in sides for row in range(len(batch))]
        found = cls(
            prompts=model.tokens(rows),
            settings=tuple(read(model.reader.strings(row)) for row in rows),
            answers=np.array([ids[0] for _, answers in sides for ids in answers], dtype=np.int64),
            units=np.tile(split.units, len(sides)),
            token_of=reading_answers(model, answer),
            position=split.metric.position,
        )
        return found.without_repeats()

    def __len__(self) -> int:
        return len(self.settings)

    @cached_property
    def data_sha256(self) -> str:
        """Hash of the prompts' tokens."""
        return hash_of_prompts(self.prompts)

    def select(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """Some of them, in the order given."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            prompts=self.prompts.select(rows),
            settings=tuple(self.settings[row] for row in rows),
            answers=self.answers[rows],
            units=self.units[rows],
        )

    def without_repeats(self) -> "Examples":
        """Each prompt once, the first of equal ones."""
        first: dict[tuple[int, ...], int] = {}
        for row in range(len(self)):
            first.setdefault(tuple(self.prompts.row(row)), row)
        return self if len(first) == len(self) else self.select(sorted(first.values()))

    def divided(self, *, seed: int = 0) -> dict[str, "Examples"]:
        """Train, validation and held-out examples (a third, a sixth, a half); units stay whole.

        Raises:
            BadPairs: too few units to divide.
        """
        names = assign([(str(unit),) for unit in self.units], seed=seed)
        parts = {name: np.flatnonzero([own == name for own in names]) for name in SPLITS}
        if any(len(rows) == 0 for rows in parts.values()):
            raise BadPairs(
                "These examples are too few to be divided.",
                got=f"{len(self)} examples of {len(np.unique(self.units))} units",
                because="what was learnt on a prompt can't be tested on it",
                instead="at least six units",
            )
        return {name: self.select(rows) for name, rows in parts.items()}


def reading_answers(model: Model, answer: Callable[[Any], Word]) -> Callable[[Any], int]:
    """From an output to a token id; each word is looked up once."""
    known: dict[Word, int] = {}

    def token_of(output: Any) -> int:
        word = answer(output)
        if word not in known:
            known[word] = word if isinstance(word, int) else model.token(word)
        return known[word]

    return token_of


def refuse_shared_prompts(parts: Mapping[str, Examples]) -> None:
    """Refuse splits that have a prompt in common.

    Raises:
        BadPairs: names the splits.
    """
    owners: dict[tuple[int, ...], str] = {}
    for name, examples in parts.items():
        for row in range(len(examples)):
            owner = owners.setdefault(tuple(examples.prompts.row(row)), name)
            if owner != name:
                raise BadPairs(
                    "Two splits of the examples share a prompt.",
                    got=f"row {row} of {name} is in {owner} too",
                    because="what was learnt on a prompt can't be tested on it",
                    instead="examples.divided()",
                )
