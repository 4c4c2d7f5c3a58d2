"""sparsify's side of the interop tests; runs under an interpreter that has eai-sparsify, not under ours.

encode FOLDER X OUT, make KIND FOLDER X OUT: as in sae_lens_side.py.
"""

import sys

import numpy as np
import torch
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

KINDS = {
    "topk": {"activation": "topk", "k": 3},
    "groupmax": {"activation": "groupmax", "k": 4},
    "transcoder": {"activation": "topk", "k": 3, "transcode": True, "skip_connection": True},
}


def make(kind: str) -> SparseCoder:
    coder = SparseCoder(12, SparseCoderConfig(num_latents=24, **KINDS[kind]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, one in sorted(coder.named_parameters()):
            one.copy_(torch.randn(one.shape, generator=generator) * (0.4 if one.ndim > 1 else 0.2))
    return coder


if __name__ == "__main__":
    if sys.argv[1] == "encode":
        _, _, folder, given, out = sys.argv
        coder = SparseCoder.load_from_disk(folder)
    else:
        _, _, kind, folder, given, out = sys.argv
        coder = make(kind)
        coder.save_to_disk(folder)
    x = torch.from_numpy(np.load(given))
    with torch.no_grad():
        values, latents, _ = coder.encode(x)
        codes = torch.zeros(len(x), coder.num_latents).scatter(1, latents.long(), values)
        output = coder.decode(values, latents)
        if coder.W_skip is not None:
            output = output + x @ coder.W_skip.mT
        np.savez(out, codes=codes.numpy(), output=output.numpy())
