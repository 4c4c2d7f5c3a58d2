"""What the tests of BERT share: a tiny one that reads words, between [CLS] and [SEP], and knows a mask."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

WORDS = ("the", "cat", "dog", "sees", "a", "bird", "sleeps", "Mary", "John")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def masking_tokenizer() -> Any:
    """One token a word, with BERT's special tokens around a text."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@cache
def reading_bert() -> Model:
    """A tiny masked language model in double precision, with that tokenizer."""
    return wrap(tiny("bert", torch.float64), masking_tokenizer(), check=False)
