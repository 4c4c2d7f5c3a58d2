"""Answers: what a foreign file does not say, and its reader must not guess.

A reader asks by `needed` and `settled`; the refusal carries the question and the readings that are known, so that the
caller can answer it by name: `ms.dictionaries.open(path, compares="pre")`.
"""

from dataclasses import dataclass, fields
from typing import Any

from mechscope.vocabulary.errors import AmbiguousDictionary, DictionaryMismatch


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the caller knows about a file; None leaves it to the file, or to the refusal.

    Args:
        site: Site read (and written, if `writes` is not given), in any spelling.
        writes: Site written.
        model: Name of the model that the dictionary was trained on.
        layer: Of a folder with one dictionary a layer: which one.
        n_heads: Heads at a "z" site, so that [..., head, d_head] is taken as it stands.
        gate: Gate rule.
        k: Latents per token.
        threshold: One threshold for all latents.
        compares: What is ranked or compared with the threshold: "pre", "pre_times_decoder_norm", ...
        scale: By which inputs were multiplied in training; 1 if they were not.
        applies_b_dec_to_input: `b_dec` is subtracted from the input.
        basis: "centred" if the residual stream was centred by weight processing, "as_is" if it was not.
    """

    site: str | None = None
    writes: str | None = None
    model: str | None = None
    layer: int | None = None
    n_heads: int | None = None
    gate: str | None = None
    k: int | None = None
    threshold: float | None = None
    compares: str | None = None
    scale: float | None = None
    applies_b_dec_to_input: bool | None = None
    basis: str | None = None

    def settled(self, name: str, stated: Any, question: str = "", *, readings: str = "") -> Any:
        """What the file states, or the answer; a refusal if there is neither or they differ.

        Raises:
            AmbiguousDictionary: the file is silent and nobody answered.
            DictionaryMismatch: the answer contradicts the file.
        """
        answer = getattr(self, name)
        if stated is None and answer is None:
            raise ambiguous(name, question, readings)
        if stated is not None and answer is not None and answer != stated:
            raise DictionaryMismatch(
                f"The file states {name} itself, and otherwise.",
                got=f"{name}={answer!r}, the file says {stated!r}",
                because="an answer is for what a file leaves open",
                instead=f"leave {name} out",
            )
        return answer if stated is None else stated

    def needed(self, name: str, question: str, *, readings: str = "") -> Any:
        """The answer, or the question as a refusal.

        Raises:
            AmbiguousDictionary
        """
        return self.settled(name, None, question, readings=readings)


ANSWERS = tuple(one.name for one in fields(Answers))


def ambiguous(name: str, question: str, readings: str = "") -> AmbiguousDictionary:
    """The refusal that asks a question."""
    return AmbiguousDictionary(
        question,
        got="a file that does not say",
        because="another reading gives other codes, without any error",
        instead=f"ms.dictionaries.open(path, {name}=...)" + (f": {readings}" if readings else ""),
    )
