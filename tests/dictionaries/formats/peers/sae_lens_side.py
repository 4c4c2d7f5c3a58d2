"""SAELens' side of the interop tests; runs under an interpreter that has sae-lens, not under ours.

encode FOLDER X OUT: codes and outputs of a dictionary that lies in FOLDER.
make KIND FOLDER X OUT: make a dictionary with random weights, save it to FOLDER, and encode.
"""

import sys
import warnings

import numpy as np
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class, get_sae_training_class

warnings.filterwarnings("ignore")


def randomised(sae: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, one in sorted(sae.named_parameters()):
            noise = torch.randn(one.shape, generator=generator) * (0.4 if one.ndim > 1 else 0.2)
            one.copy_(noise.abs() + 0.1 if "threshold" in name else noise)
        if "matching" in type(sae).__name__.lower():
            sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def make(kind: str) -> torch.nn.Module:
    more: dict = {"k": 3} if kind in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk") else {}
    if kind == "topk_rescaled":
        kind, more = "topk", {"k": 3, "rescale_acts_by_decoder_norm": True}
    if kind == "layer_norm":
        kind, more = "standard", {"normalize_activations": "layer_norm"}
    if kind == "matryoshka_batchtopk":
        more["matryoshka_widths"] = [4, 8]
    if kind == "matching_pursuit":
        more = {"max_iterations": 4, "residual_threshold": 0.1}
    if kind.endswith("transcoder"):
        more = {"d_out": 10, "apply_b_dec_to_input": False}
    is_training = kind in ("batchtopk", "matryoshka_batchtopk")
    model, config = (get_sae_training_class if is_training else get_sae_class)(kind)
    made = config(d_in=12, d_sae=24, **more)
    made.metadata.hook_name, made.metadata.hook_name_out = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    sae = randomised(model(made))
    if is_training:
        sae.topk_threshold = torch.tensor(0.3, dtype=torch.double)
    return sae


if __name__ == "__main__":
    if sys.argv[1] == "encode":
        _, _, folder, given, out = sys.argv
        sae = SAE.load_from_disk(folder)
    else:
        _, _, kind, folder, given, out = sys.argv
        sae = make(kind)
        if isinstance(sae, TrainingSAE):
            sae.save_inference_model(folder)
            sae = SAE.load_from_disk(folder)
        else:
            sae.save_model(folder)
    x = torch.from_numpy(np.load(given))
    with torch.no_grad():
        np.savez(out, codes=sae.encode(x).numpy(), output=sae(x).numpy())
