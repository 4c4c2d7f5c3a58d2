"""Interop with the libraries themselves, both ways: same codes and same outputs to 1e-5.

Each library needs an environment of its own, so its side runs in a subprocess. Name its interpreter:
`MECHSCOPE_SAE_LENS`, `MECHSCOPE_DICTIONARY_LEARNING`, `MECHSCOPE_SPARSIFY`, `MECHSCOPE_CIRCUIT_TRACER`; without it the
test is skipped. Largest differences go into the properties of a junit file.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dictionaries.formats.test_reading import opened, values
from mechscope import dictionaries

PEERS = Path(__file__).parent / "peers"
LIBRARIES = {
    "saelens": ("MECHSCOPE_SAE_LENS", "sae_lens_side.py"),
    "dictionary_learning": ("MECHSCOPE_DICTIONARY_LEARNING", "dictionary_learning_side.py"),
    "sparsify": ("MECHSCOPE_SPARSIFY", "sparsify_side.py"),
    "circuit_tracer": ("MECHSCOPE_CIRCUIT_TRACER", "circuit_tracer_side.py"),
}
THEIRS = {
    "saelens": [
        "standard",
        "gated",
        "topk",
        "topk_rescaled",
        "abstopk",
        "jumprelu",
        "matching_pursuit",
        "layer_norm",
        "batchtopk",
        "matryoshka_batchtopk",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ],
    "dictionary_learning": [
        "AutoEncoder",
        "AutoEncoderNew",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
    ],
    "sparsify": ["topk", "groupmax", "transcoder"],
    "circuit_tracer": ["set_relu", "set_jumprelu", "set_skip", "clt_relu", "clt_jumprelu"],
}
OURS = {
    "saelens": [
        "sae_lens_standard",
        "sae_lens_gated",
        "sae_lens_topk_rescaled",
        "sae_lens_abstopk",
        "sae_lens_matching_pursuit",
        "sae_lens_layer_norm",
        "sae_lens_constant_norm",
        "sae_lens_jumprelu_skip_transcoder",
        "sae_lens_checkpoint_batchtopk",
        "gemma_scope_res",
        "openai_topk",
        "learning_topk",
    ],
    "dictionary_learning": [
        "learning_autoencoder",
        "learning_autoencoder_new",
        "learning_topk",
        "learning_batchtopk",
        "learning_gated",
        "gemma_scope_res",
        "sae_lens_checkpoint_batchtopk",
    ],
    "sparsify": [
        "sparsify_topk",
        "sparsify_groupmax",
        "sparsify_skip_transcoder",
        "learning_topk",
        "sae_lens_topk",
    ],
    "circuit_tracer": ["tracer_transcoders", "tracer_relu", "tracer_cross_layer", "tracer_cross_layer_relu"],
}


def cases(by_library: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(library, name) for library, names in by_library.items() for name in names]


def run_their_side(library: str, *arguments: str | Path) -> None:
    """Run a library's script under its own interpreter; skips the test where there is none."""
    variable, script = LIBRARIES[library]
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"{variable} names no interpreter that has {library}")
    command = [interpreter, PEERS / script, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def their_side(
    library: str, *arguments: str | Path, x: np.ndarray, folder: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    np.save(folder / "x.npy", x)
    run_their_side(library, *arguments, folder / "x.npy", folder / "out.npz")
    with np.load(folder / "out.npz") as out:
        return torch.from_numpy(out["codes"]), torch.from_numpy(out["output"])


def compared(ours: torch.Tensor, theirs: torch.Tensor, what: str, record: pytest.FixtureRequest) -> None:
    difference = float((ours - theirs).abs().max())
    record.node.user_properties.append((what, difference))
    assert difference <= 1e-5, f"{what} differ by {difference}"


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), cases(OURS))
def test_what_we_write_they_open(
    library: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dictionary, x = opened(name), values(name)
    folder = tmp_path / {"sparsify_skip_transcoder": "h.1.mlp"}.get(name, "layers.1")
    dictionaries.export(dictionary, folder, format=library)
    codes, output = their_side(library, "encode", folder, x=x.numpy(), folder=tmp_path)
    assert float((codes != 0).float().mean()) > 0
    scale = (
        dictionary.settings.normalization.is_pending and dictionary.settings.normalization.rule == "affine"
    )
    ours = dictionary.folded() if scale else dictionary
    compared(ours.encode(x), codes, "codes", request)
    compared(ours(x), output, "outputs", request)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "kind"), cases(THEIRS))
def test_what_they_write_we_open(
    library: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shape = (32, 3, 12) if library == "circuit_tracer" else (32, 12)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    folder = tmp_path / ("h.1.mlp" if kind == "transcoder" else "layers.1")
    codes, output = their_side(library, "make", kind, folder, x=x, folder=tmp_path)
    assert float((codes != 0).float().mean()) > 0
    dictionary = dictionaries.open(folder)
    compared(dictionary.encode(torch.from_numpy(x)), codes, "codes", request)
    compared(dictionary(torch.from_numpy(x)), output, "outputs", request)
