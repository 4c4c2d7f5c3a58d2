"""Prompt pairs: two prompts that differ in what decides the answer, as text or as token ids.

Owns: `PromptPair` (as somebody writes it) and `TokenPair` (as a model reads it). Turning one into the other
needs a tokenizer and happens above. Refuses nothing: these are plain values.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A clean prompt, its corrupt twin, and how each should be continued, as text.

    Args:
        clean: Prompt whose right answer is `answers`.
        corrupt: Prompt of as many tokens whose right answer is `wrong`.
        answers: Words that are right after the clean prompt; any of them counts.
        wrong: Words that they are measured against; may be empty.
        entities: What the pair is about, the most important first. Prompts that share one are not independent.
        template: Name of the wording.
        glue: What stands between a prompt and its answer: " ", or "" for a bracket or half a number.
        origin: Where it was read, for messages: "line 3".
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    template: str = ""
    glue: str = " "
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """The same as token ids: both prompts have equal length, unpadded.

    Args:
        clean: Ids of the clean prompt.
        corrupt: Ids of the corrupt prompt.
        answers: Ids of the right answers after the clean prompt.
        wrong: Ids that they are measured against; may be empty.
        entities: As in `PromptPair`.
        template: As in `PromptPair`.
        texts: Both prompts as text, for display; empty where there is none.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    wrong: tuple[int, ...] = ()
    entities: tuple[str, ...] = ()
    template: str = ""
    texts: tuple[str, str] = ("", "")
