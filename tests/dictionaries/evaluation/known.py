"""Dictionaries whose figures are known: the identity, the mean, an exact transcoder of a ReLU network."""

from dataclasses import replace

import torch
from torch import Tensor

from family_cases import opened
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings, sae_settings
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site
from tiny_models import VOCABULARY

SITE = "resid_post.1"


def texts(n: int = 12, seed: int = 0, shortest: int = 5, longest: int = 14) -> TokenBatch:
    """Random prompts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    rows = [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return batch_of(rows, pad_id=0)


def relu_model() -> Model:
    """A model whose MLPs are ReLU networks, so that a transcoder of them can be exact."""
    return opened("opt")


def identity(width: int, site: str = SITE) -> Dictionary:
    """x = relu(x) - relu(-x)."""
    eye = torch.eye(width, dtype=torch.float64)
    tensors = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye], 0)}
    tensors |= {"b_enc": torch.zeros(2 * width).double(), "b_dec": torch.zeros(width).double()}
    return Dictionary(sae_settings(site, width=width, n_latents=2 * width, gate=Gate(rule="relu")), tensors)


def nothing_but(bias: Tensor, site: str = SITE, n_latents: int = 4) -> Dictionary:
    """Writes a constant, whatever it reads; its latents never fire."""
    width = len(bias)
    tensors = {
        "W_enc": torch.zeros(width, n_latents).double(),
        "W_dec": torch.zeros(n_latents, width).double(),
    }
    tensors |= {"b_enc": torch.full((n_latents,), -1.0).double(), "b_dec": bias.double()}
    return Dictionary(sae_settings(site, width=width, n_latents=n_latents, gate=Gate(rule="relu")), tensors)


def noisy(dictionary: Dictionary, size: float, seed: int = 3) -> Dictionary:
    """The same with noise on the decoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(dictionary.tensors)
    for name in [name for name in tensors if name.startswith("W_dec")]:
        noise = torch.randn(tensors[name].shape, generator=generator, dtype=torch.float64)
        tensors[name] = tensors[name] + size * noise
    return Dictionary(dictionary.settings, tensors)


def exact_transcoder(layer: int = 1) -> Dictionary:
    """The MLP itself: its neurons are the latents."""
    w_in, b_in, w_out, b_out = mlp(layer)
    port = [Port(site=Site(point, layer), shape=(len(w_in),)) for point in ("mlp_in", "mlp_out")]
    settings = Settings(reads=(port[0],), writes=(port[1],), n_latents=len(b_in), gate=Gate(rule="relu"))
    return Dictionary(settings, {"W_enc": w_in, "b_enc": b_in, "W_dec": w_out, "b_dec": b_out})


def exact_cross_layer() -> Dictionary:
    """All MLPs at once; decoders to later layers are zero."""
    parts = [mlp(layer) for layer in range(3)]
    n, width = len(parts), len(parts[0][0])
    tensors = {
        "W_enc": torch.stack([part[0] for part in parts]),
        "b_enc": torch.cat([part[1] for part in parts]),
        "b_dec": torch.stack([part[3] for part in parts]),
    }
    for layer in range(n):
        decoder = torch.zeros(len(parts[layer][1]), n - layer, width, dtype=torch.float64)
        decoder[:, 0] = parts[layer][2]
        tensors[f"W_dec.{layer}"] = decoder
    sides = [tuple(Port(site=Site(p, i), shape=(width,)) for i in range(n)) for p in ("mlp_in", "mlp_out")]
    settings = Settings(
        reads=sides[0],
        writes=sides[1],
        n_latents=len(tensors["b_enc"]),
        gate=Gate(rule="relu"),
        is_cross_layer=True,
        targets=tuple(tuple(range(i, n)) for i in range(n)),
    )
    return Dictionary(settings, tensors)


def mlp(layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    block = relu_model().hf.model.decoder.layers[layer]
    return (
        block.fc1.weight.detach().T.clone(),
        block.fc1.bias.detach().clone(),
        block.fc2.weight.detach().T.clone(),
        block.fc2.bias.detach().clone(),
    )


def wrongly_placed(transcoder: Dictionary) -> Dictionary:
    """The defect of an evaluator in use: what belongs at the site written goes to the site read."""
    return Dictionary(replace(transcoder.settings, writes=transcoder.settings.reads), transcoder.tensors)
