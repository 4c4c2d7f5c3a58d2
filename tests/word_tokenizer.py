"""A tokenizer of whole words made in the test: one token a word, [BOS] before every text."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words and punctuation; anything else is [UNK]."""
    vocabulary = {"[PAD]": 0, "[BOS]": 1, "[UNK]": 2}
    for word in (*words, *".,:?()[]{}"):
        vocabulary.setdefault(word, len(vocabulary))
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B", special_tokens=[("[BOS]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="[BOS]", pad_token="[PAD]", unk_token="[UNK]", padding_side="left"
    )
