"""The village's tokenizer: one token a word, punctuation apart, [BOS] before every text.

Owns: the vocabulary and the tokenizer files. Refuses nothing; an unknown word is [UNK].
Invariant: the vocabulary is a function of the lexicon and of the templates, so held-out templates are made
of words that training knows.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.language import draw_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, UNK = "[PAD]", "[BOS]", "[UNK]"
_SAMPLE_DOCUMENTS = 40_000


@lru_cache
def vocabulary() -> dict[str, int]:
    """Return token -> id: specials, the lexicon, then what else a fixed sample of the language holds, sorted."""
    stream = draw_documents(0)
    sampled = {word for _ in range(_SAMPLE_DOCUMENTS) for word in next(stream).text.replace("*", "").split()}
    listed = lexicon.listed_words()
    words = [PAD, BOS, UNK, *listed, *sorted(sampled.difference(listed) | {"unknown"})]
    return {word: index for index, word in enumerate(words)}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Return the tokenizer as `AutoTokenizer.from_pretrained` will read it back.

    A document ends where the next [BOS] stands, so [BOS] is also the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary()
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    build_tokenizer().save_pretrained(str(folder))
