"""dictionary_learning's side of the interop tests; runs under an interpreter that has it, not under ours.

encode FOLDER X OUT, make KIND FOLDER X OUT: as in sae_lens_side.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

PLAIN = {one.__name__: one for one in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder)}
WITH_K = {one.__name__: one for one in (AutoEncoderTopK, BatchTopKSAE)}


def make(name: str) -> torch.nn.Module:
    if name in PLAIN:
        ae = PLAIN[name](12, 24)
    elif name in WITH_K:
        ae = WITH_K[name](12, 24, 3)
    else:
        ae = MatryoshkaBatchTopKSAE(12, 24, 3, [8, 16])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, one in sorted(ae.named_parameters()):
            noise = torch.randn(one.shape, generator=generator) * (0.4 if one.ndim > 1 else 0.2)
            one.copy_(noise.abs() + 0.05 if key == "threshold" else noise)
        if "threshold" in dict(ae.named_buffers()):
            ae.threshold.fill_(0.3)
    return ae


def opened(folder: Path) -> torch.nn.Module:
    """As their own loaders build it, without renormalising the decoder on the way."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    encoder = state["W_enc"].T if "W_enc" in state else state["encoder.weight"]
    ae = (
        PLAIN[name](encoder.shape[1], encoder.shape[0])
        if name in PLAIN
        else WITH_K[name](*encoder.T.shape, int(state["k"]))
    )
    ae.load_state_dict(state)
    return ae


if __name__ == "__main__":
    if sys.argv[1] == "encode":
        _, _, folder, given, out = sys.argv
        ae = opened(Path(folder))
    else:
        _, _, kind, folder, given, out = sys.argv
        ae = make(kind)
        Path(folder).mkdir(parents=True)
        torch.save(ae.state_dict(), Path(folder) / "ae.pt")
        trainer = {
            "dict_class": kind,
            "layer": 1,
            "lm_name": "m",
            "submodule_name": "resid_post_layer_1",
            "k": 3,
        }
        (Path(folder) / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    x = torch.from_numpy(np.load(given))
    with torch.no_grad():
        np.savez(out, codes=ae.encode(x).numpy(), output=ae(x).numpy())
