"""Tiny models with tokenizers made in the test, and pairs in their words."""

import re
from functools import lru_cache

import mechscope as ms
from mechscope.behaviors.templates import countries, grammar, people, words
from mechscope.models.model import Model
from tiny_models import tiny
from word_tokenizer import word_tokenizer

NAMES = "Ada Bob Cy Dee Eve Fay Gus Hal Ida Jon Kim Lou".split()
STORY = "saw gave to the dog ball and then Then a".split()


def _template_words() -> list[str]:
    wordings = (people.IndirectObject, people.Pronoun, grammar.Agreement, grammar.Brackets)
    wordings += (countries.FactualRecall, countries.Sycophancy)
    texts = [text for wording in wordings for text in wording.templates.values()]
    found = [word for text in texts for word in re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", " ", text))]
    found += "she he her his is are was were has have".split()
    found += [*words.WOMEN, *words.MEN, *words.PLACES, *words.GIFTS]
    found += [form for noun in (*words.NOUNS, *words.DISTRACTORS) for form in noun]
    return found + [fact for country in words.COUNTRIES for fact in country if fact]


@lru_cache
def word_model() -> Model:
    """A random GPT-2 whose tokenizer knows every word of the templates."""
    tokenizer = word_tokenizer(_template_words())
    return ms.wrap(tiny("gpt2", vocab_size=len(tokenizer)), tokenizer)


@lru_cache
def small_model() -> Model:
    """A random Llama that knows a dozen names and little else."""
    tokenizer = word_tokenizer([*NAMES, *STORY])
    return ms.wrap(tiny("llama", vocab_size=len(tokenizer)), tokenizer)


@lru_cache
def speechless_model() -> Model:
    """A random GPT-2 without a tokenizer."""
    return ms.wrap(tiny("gpt2"))
