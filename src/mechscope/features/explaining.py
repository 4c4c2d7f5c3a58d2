"""Explaining: who writes labels and who judges them: one small protocol, a language model behind it, and a baseline.

An explainer sees pieces of text with the latent's activations. What a language model answers is read strictly; an
answer that can't be read counts as undecided, never as right.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mechscope.features.page import Example, gap_of

MARKED = "<<{}>>"


@runtime_checkable
class Explainer(Protocol):
    """Writes labels, and says which texts a label fits.

    `name` stands beside each label and score.
    """

    @property
    def name(self) -> str: ...

    def explain(self, fires: Sequence[Example], silent: Sequence[Example]) -> str:
        """A label for a latent, from texts where it fires and texts where it does not."""
        ...

    def rate(self, label: str, texts: Sequence[Example]) -> list[float]:
        """How well the label fits each text, 0 to 1. Tokens with an activation above 0 are shown as marked."""
        ...

    def pick(self, texts: Sequence[Example]) -> int:
        """Which of the texts does not belong with the others; no label is shown."""
        ...


@dataclass(frozen=True)
class TokenStatistics:
    """The baseline that needs no model: a label is the list of tokens on which the latent fires.

    Args:
        n_words: Tokens in a label.
    """

    n_words: int = 5
    name: str = "token statistics"

    def explain(self, fires: Sequence[Example], silent: Sequence[Example]) -> str:
        """The tokens that carry most of the activation, less what silent texts hold too."""
        weights: dict[str, float] = {}
        for one in fires:
            largest = max(one.values, default=0.0) or 1.0
            for token, value in zip(one.tokens, one.values, strict=True):
                if value > 0:
                    weights[token] = weights.get(token, 0.0) + value / largest
        common: dict[str, int] = {}
        for one in silent:
            for token in set(one.tokens):
                common[token] = common.get(token, 0) + 1
        score = {
            token: weight / (1 + common.get(token, 0)) for token, weight in weights.items() if token.strip()
        }
        best = sorted(score, key=lambda token: (-score[token], token))[: self.n_words]
        return (
            "on " + ", ".join(f'"{token.strip()}"' for token in best) if best else "on nothing that is text"
        )

    def rate(self, label: str, texts: Sequence[Example]) -> list[float]:
        """1 for the first token of the label, less for later ones; of marked tokens where there are any."""
        words = _quoted(label)
        return [self._fit(words, one) for one in texts]

    def pick(self, texts: Sequence[Example]) -> int:
        """The text that shares fewest words with the others."""
        sets = [{token.strip().casefold() for token in one.tokens if token.strip()} for one in texts]
        shared = [
            sum(len(own & other) for j, other in enumerate(sets) if j != i) / max(1, len(own))
            for i, own in enumerate(sets)
        ]
        return shared.index(min(shared))

    def _fit(self, words: list[str], one: Example) -> float:
        is_marked = any(value > 0 for value in one.values)
        seen = [t for t, v in zip(one.tokens, one.values, strict=True) if v > 0 or not is_marked]
        tokens = {token.strip().casefold() for token in seen}
        fits = [1 - place / (len(words) + 1) for place, word in enumerate(words) if word in tokens]
        return max(fits, default=0.0)


@dataclass(frozen=True)
class LanguageModel:
    """An explainer that asks a language model: any function from a prompt to its answer.

    Args:
        complete: `lambda prompt: ...`: a local model's `generate`, or a call of an API.
        name: Of the model.
    """

    complete: Callable[[str], str]
    name: str

    def explain(self, fires: Sequence[Example], silent: Sequence[Example]) -> str:
        """Ask for a label of at most a line."""
        answer = self.complete(
            "A unit of a neural network reacts to the marked tokens in these texts:\n"
            + _listed(fires, marks=True)
            + "\nIt does not react to these:\n"
            + _listed(silent, marks=False)
            + "\nSay in at most twelve words what it reacts to. Answer with that phrase alone.\n"
        )
        lines = [line.strip().strip('"') for line in answer.strip().splitlines() if line.strip()]
        return lines[0][:200] if lines else "no answer"

    def rate(self, label: str, texts: Sequence[Example]) -> list[float]:
        """Ask for a number from 0 to 10 a text."""
        answer = self.complete(
            f"A unit of a neural network is said to react to: {label}\n"
            "For each text, say from 0 (no) to 10 (yes) whether it reacts there"
            " (where tokens are marked: whether it is to those tokens). One line a text: number, colon, rating.\n"
            + _listed(texts, marks=True)
            + "\n"
        )
        found = {int(i): int(v) for i, v in re.findall(r"^\s*(\d+)\s*[:.]\s*(\d+)\s*$", answer, re.MULTILINE)}
        return [min(found[i], 10) / 10 if i in found else 0.5 for i in range(1, len(texts) + 1)]

    def pick(self, texts: Sequence[Example]) -> int:
        """Ask for the number of the odd one; -1, which is never right, if the answer is no number."""
        answer = self.complete(
            "All of these texts but one have something in common. Which one does not belong? "
            "Answer with its number alone.\n" + _listed(texts, marks=True) + "\n"
        )
        found = re.search(r"\d+", answer)
        place = int(found[0]) - 1 if found else -1
        return place if 0 <= place < len(texts) else -1


def _listed(texts: Sequence[Example], *, marks: bool) -> str:
    return "\n".join(f"{i}. {written(one, marks=marks)}" for i, one in enumerate(texts, start=1))


def written(one: Example, *, marks: bool) -> str:
    """A piece of text on one line, its active tokens between << and >>."""
    parts = [
        MARKED.format(token) if marks and value > 0 else token
        for token, value in zip(one.tokens, one.values, strict=True)
    ]
    return gap_of(one.tokens).join(parts).replace("\n", " ").strip()


def _quoted(label: str) -> list[str]:
    """The quoted words of a label, or all of its words."""
    found = re.findall(r'"([^"]+)"', label) or re.findall(r"\w+", label)
    return [word.casefold() for word in found]
