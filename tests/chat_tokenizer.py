"""A tokenizer made in the test that keeps leading spaces, as byte-pair tokenizers do, and knows chats."""

from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

WORDS = (
    "cat",
    " cat",
    "dog",
    " dog",
    " sees",
    "user",
    ":",
    " assistant",
    "\n",
    " ",
    "c",
    "a",
    "t",
    "un",
    "known",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %} assistant:"


def chat_tokenizer(*, adds_bos: bool = True, has_chat: bool = True) -> Any:
    """Whole words are tokens, with and without a leading space; other text falls into pieces or <unk>."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = "|".join(sorted(WORDS, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if has_chat:
        fast.chat_template = TEMPLATE
    return fast


@cache
def words_model(*, adds_bos: bool = True, has_chat: bool = True) -> Model:
    """A tiny llama in double precision that reads words."""
    tokenizer = chat_tokenizer(adds_bos=adds_bos, has_chat=has_chat)
    return wrap(tiny("llama", torch.float64), tokenizer, check=False)
