"""Continuations: what a text adds to a prompt, in tokens, as the model would see it.

Owns: the reading of prompts and answers in context. A word's token depends on the space before it and on what
precedes it, so nothing is ever tokenised alone. Invariant: each text is tokenised once.
"""

from collections.abc import Iterable

from mechscope.models.inputs import Reader
from mechscope.vocabulary.errors import EmptyPrompt, PromptTooLong, UnreadableText


class Continuations:
    """Token ids by text.

    Args:
        reader: Of the model.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rows: dict[str, tuple[int, ...]] = {}
        self._refused: dict[str, str] = {}
        self._after: dict[tuple[str, str], int | None] = {}
        self._unknown = None if reader.tokenizer is None else reader.tokenizer.unk_token_id

    def read(self, texts: Iterable[str]) -> None:
        """Tokenise what is new among `texts`, in one call.

        Raises:
            MissingTokenizer: the model has none.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._rows and text not in self._refused]
        if not new:
            return
        try:
            batch = self._reader.batch(new)
        except (PromptTooLong, EmptyPrompt, UnreadableText) as error:
            if len(new) == 1:
                self._refused[new[0]] = f"{error.what} {error.got}; {error.because}"
                return
            middle = len(new) // 2
            self.read(new[:middle])
            self.read(new[middle:])
            return
        self._rows |= {text: tuple(batch.row(row)) for row, text in enumerate(new)}

    def __getitem__(self, text: str) -> tuple[int, ...]:
        self.read([text])
        return self._rows.get(text, ())

    def refused(self, text: str) -> str:
        """Why a text is no prompt for this model, "" if it is one."""
        self.read([text])
        return self._refused.get(text, "")

    def strings(self, text: str) -> list[str]:
        """The tokens of a text, as text."""
        return self._reader.strings(self[text])

    def added(self, prompt: str, continuation: str) -> tuple[int, ...]:
        """Ids that `continuation` adds to `prompt`; () if it changes how the prompt is cut, or holds unknown words."""
        before, whole = self[prompt], self[prompt + continuation]
        if whole[: len(before)] != before or self._unknown in whole[len(before) :]:
            return ()
        return whole[len(before) :]

    def prepare(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Tokenise in one call what `after` will need for these prompts and continuations."""
        first: dict[tuple[str, str], str] = {}
        for prompt, continuation in wanted:
            first.setdefault((_tail(prompt), continuation), prompt)
        new = {key: prompt for key, prompt in first.items() if key not in self._after}
        self.read(text for (_, more), prompt in new.items() for text in (prompt, prompt + more))

    def after(self, prompt: str, continuation: str) -> int | None:
        """The one token that `continuation` adds to `prompt`; None if it adds none or several, or changes it.

        Looked up by the prompt's last two words: tokenizers cut text at spaces, so what stands further back
        can't change how the end is cut. The first prompt that ends so is tokenised as a whole.
        """
        key = _tail(prompt), continuation
        if key not in self._after:
            found = self.added(prompt, continuation)
            self._after[key] = found[0] if len(found) == 1 else None
        return self._after[key]


def _tail(prompt: str) -> str:
    """The last two words with the space before them, or the whole prompt."""
    start = len(prompt)
    for _ in range(2):
        start = prompt.rfind(" ", 0, start)
        if start < 0:
            return prompt
    return prompt[start:]
