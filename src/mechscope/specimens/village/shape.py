"""The village's model: a stock Llama of a few million weights.

Owns: the configuration and how a fresh model is made. Invariant: the weights at step 0 are a function of the seed.
"""

from typing import TYPE_CHECKING

from mechscope.specimens.village.tokenizer import BOS, PAD, vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

N_POSITIONS = 128


def new_model(seed: int, *, n_layers: int = 5, d_model: int = 192, n_heads: int = 6) -> "LlamaForCausalLM":
    """Make an untrained model in float32: Llama with tied embeddings and as many key heads as query heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=d_model,
        intermediate_size=8 * d_model // 3,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=N_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=ids[BOS],
        eos_token_id=ids[BOS],
        pad_token_id=ids[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
