"""What the tests of the feature index share: a tiny model with words, a random dictionary, a text, a dense oracle."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings
from mechscope.engine.harvest.corpus import TokenCorpus, corpus_of
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import IndexSettings
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.sites import Site
from tiny_models import VOCABULARY, tiny
from word_tokenizer import word_tokenizer

WORDS = [f"w{i}" for i in range(VOCABULARY - 12)]
N_LATENTS = 24
SMALL = IndexSettings(tokens_per_block=60, entries_per_part=200)


@cache
def model_of(dtype: torch.dtype = torch.float64) -> Model:
    return wrap(tiny("llama", dtype), word_tokenizer(WORDS), name="tiny", check=False)


@cache
def dictionary_of(rule: str = "relu", seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    port = Port(site=Site("resid_post", 1), shape=(32,))
    gate = Gate(rule="topk", k=3) if rule == "topk" else Gate(rule=rule)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {"W_enc": draw(32, N_LATENTS), "W_dec": draw(N_LATENTS, 32), "b_dec": draw(32)}
    tensors["b_enc"] = draw(N_LATENTS) - 4
    tensors["b_enc"][5] = -1e3  # never fires
    tensors["b_enc"][6] = 1e3 if rule == "relu" else 0  # always fires
    if rule == "jumprelu":
        tensors["threshold"] = draw(N_LATENTS).abs()
    return Dictionary(Settings(reads=(port,), writes=(port,), n_latents=N_LATENTS, gate=gate), tensors)


def texts(n: int = 40, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 14))) for _ in range(n)]


def corpus(n: int = 40, seed: int = 0) -> TokenCorpus:
    return corpus_of(model_of(), texts(n, seed))


def dense_codes(text: TokenCorpus, rule: str = "relu") -> np.ndarray:
    """Codes of every token, one row at a time, [token, latent]; zeros at tokens that do not count."""
    model, dictionary = model_of(), dictionary_of(rule)
    found = np.zeros((len(text.ids), N_LATENTS))
    for row in range(text.n_rows):
        run = model.run(text.row(row).long()[None], capture=["resid_post.1"])
        start, stop = int(text.offsets[row]), int(text.offsets[row + 1])
        found[start:stop] = dictionary.encode(run["resid_post.1"][0]).numpy()
    found[~text.counts.numpy()] = 0
    return found


def built(folder: Path, rule: str = "relu", **more) -> FeatureIndex:
    from mechscope.features.building import build

    options = {"settings": SMALL} | more
    return build(model_of(), dictionary_of(rule), corpus(), folder=folder, **options)
