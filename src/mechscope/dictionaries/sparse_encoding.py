"""Sparse encoding: which latents fire and how much, in few passes over the pre-activations and without dense codes.

The same codes as the dense gates give, which stay the definition. Rules and kinds that it does not cover are None.
"""

import torch
from torch import Tensor

from mechscope.dictionaries.blocks import Weights
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.kernels.selection import above, largest


def encode_sparsely(taken: Tensor, weights: Weights) -> SparseCodes | None:
    """Codes [token] of normalised values [token, d_in]; a token's latents stand in no order.

    Cost: the encoder's product, and one pass for maxima of groups; only groups that hold something are looked at.
    """
    gate = weights.settings.gate
    is_plain = gate.compares == "pre" and gate.negatives == "zeroed" and len(weights.blocks) == 1
    if not is_plain or gate.rule not in ("topk", "relu", "jumprelu") or not len(taken):
        return None
    block = weights.blocks[0]
    own = weights.per_latent(block)
    pre = torch.addmm(own["b_enc"], taken[:, block.read], weights.encoder(block))
    n = weights.settings.n_latents
    if gate.rule == "topk":
        assert gate.k is not None
        latents = largest(pre, min(gate.k, n))
        return SparseCodes.of_rectangle(pre.gather(1, latents).relu(), latents, n)
    if gate.rule == "relu":
        found = above(pre, 0.0)
    else:
        found = above(pre - own["threshold"], 0.0)
    values = pre[found.rows, found.latents]
    if gate.rule == "jumprelu" and bool((values == 0).any()):
        return None  # a threshold below zero lets a zero through; the dense path leaves it out
    return SparseCodes(values, found.latents, found.offsets, n, (len(taken),))
