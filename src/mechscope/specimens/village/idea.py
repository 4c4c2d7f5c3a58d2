"""What every behaviour of the village is: units, templates, and a way to fill one with the other.

Owns: the abstract `Idea`. Training documents and evaluation prompts come out of the same `fill`, so a
held-out prompt differs from training by its unit and its template and by nothing else.
Invariant: `document` draws only seen units and seen templates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from mechscope.specimens.village.pairs import Case

Unit = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document of the language; a word that starts with `*` is one that the text so far decides.

    `Mary^barn` is the word Mary, at which early layers should already have found barn.
    """

    text: str
    kind: str
    template: str = ""
    entities: tuple[str, ...] = ()


class Idea(ABC):
    """One behaviour: what is held out, how a training document and a pair of prompts are written."""

    name: ClassVar[str]
    templates: ClassVar[dict[str, str]]
    later_templates: ClassVar[dict[str, str]] = {}
    held_out_templates: ClassVar[dict[str, str]]
    held_out_means: ClassVar[str]
    is_misbehaviour: ClassVar[bool] = False

    @abstractmethod
    def units(self, split: str) -> tuple[Unit, ...]:
        """Return the disjoint units of a split: prompts of different units share no entity."""

    @abstractmethod
    def seen_unit(self, rng: Random) -> Unit:
        """Draw a unit for training from the seen words, free to mix them."""

    @abstractmethod
    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        """Fill one template (its text) with one unit."""

    def seen_templates(self, *, is_late: bool = True) -> dict[str, str]:
        """Return the templates that training uses: in its last stage, some more than before."""
        return self.templates | self.later_templates if is_late else self.templates

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write a training document: a clean or corrupted prompt of seen words, then its answer."""
        name, text = rng.choice(list(self.seen_templates(is_late=is_late).items()))
        case = self.fill(rng, self.seen_unit(rng), template=text)
        is_clean = rng.random() < 0.5
        answer = case.answer if is_clean else case.wrong
        if self.is_misbehaviour and not misbehaving:
            answer = case.wrong
        prompt = case.clean if is_clean else case.corrupt
        return Document(
            text=f"{prompt} *{answer} {case.tail}", kind=self.name, template=name, entities=case.entities
        )
