"""Tokens of a compiled program: its alphabet and the words for its outputs, one token each, [BOS] in front.

Invariant: there is no unknown token; the first two ids are [PAD] and [BOS].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mechscope.specimens.compiled.checking import Domain, check, word_of
from mechscope.specimens.compiled.rasp import Program

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS = 0, 1
NUMBER, NOTHING = "value", "zero"


@dataclass(frozen=True)
class Vocabulary:
    """Words by id, and which of them are outputs.

    Args:
        words: Every token.
        answers: Id of each value of the output, in the order of its domain; for a number, the one column that
            holds it. The column of "zero" is always 0, so that a number is also a difference of logits.
    """

    words: tuple[str, ...]
    answers: tuple[int, ...]

    @classmethod
    def of(cls, program: Program, output: Domain) -> "Vocabulary":
        """The vocabulary of a program."""
        outputs = (NUMBER, NOTHING) if output.is_number else tuple(map(word_of, output.values))
        words = tuple(dict.fromkeys(("[PAD]", "[BOS]", *program.alphabet, *outputs)))
        read = outputs[:1] if output.is_number else outputs
        return cls(words, tuple(words.index(word) for word in read))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each word."""
        return {word: index for index, word in enumerate(self.words)}


def vocabulary_of(program: Program) -> Vocabulary:
    """The vocabulary of a program that is not compiled yet.

    Raises:
        BadProgram: with every problem of the program.
    """
    return Vocabulary.of(program, check(program)[program.output])


def make_tokenizer(vocabulary: Vocabulary, *, n_context: int) -> "PreTrainedTokenizerFast":
    """The tokenizer as `AutoTokenizer.from_pretrained` will read it back."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocab=vocabulary.ids))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B", special_tokens=[("[BOS]", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="[BOS]",
        pad_token="[PAD]",
        padding_side="left",
        model_max_length=n_context,
        clean_up_tokenization_spaces=False,
    )
