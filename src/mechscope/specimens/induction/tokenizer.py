"""The specimen's tokenizer: words between spaces, one token each, [BOS] in front.

Invariant: there is no unknown token. A word that the model does not know is an error, never a guess.
"""

from typing import TYPE_CHECKING

from mechscope.specimens.induction.language import BOS, FIRST_WORD, N_CTX, PAD, WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer as `AutoTokenizer.from_pretrained` will read it back."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {"[PAD]": PAD, "[BOS]": BOS} | {word: FIRST_WORD + index for index, word in enumerate(WORDS)}
    core = Tokenizer(models.WordLevel(vocab=ids))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B", special_tokens=[("[BOS]", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="[BOS]",
        pad_token="[PAD]",
        padding_side="left",
        model_max_length=N_CTX,
        clean_up_tokenization_spaces=False,
    )
