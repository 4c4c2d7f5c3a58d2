"""What fixtures of other libraries' formats are made of: drawn tensors, and files of each kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, L = 6, 8, 3
SCALE = 0.4
Write = Callable[[Path], None]
CASES: dict[str, Write] = {}


def case(write: Write) -> Write:
    CASES[write.__name__] = write
    return write


def draw(name: str, *shape: int, size: float = 1.0, seed: int = 0) -> Tensor:
    """Random numbers that depend on a name, so that a new tensor moves no other."""
    generator = torch.Generator().manual_seed(seed * 1000 + sum(ord(c) * (i + 1) for i, c in enumerate(name)))
    return torch.randn(shape, generator=generator) * size


def positive(name: str, *shape: int, seed: int = 0) -> Tensor:
    return draw(name, *shape, seed=seed).abs() * 0.3 + 0.1


def plain(d_out: int = D, seed: int = 0) -> dict[str, Tensor]:
    """W_enc (D, F), b_enc, W_dec (F, d_out), b_dec."""
    return {
        "W_enc": draw("W_enc", D, F, size=0.5, seed=seed),
        "b_enc": draw("b_enc", F, size=0.2, seed=seed),
        "W_dec": draw("W_dec", F, d_out, size=0.6, seed=seed),
        "b_dec": draw("b_dec", d_out, size=0.3, seed=seed),
    }


def put(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    elif name.endswith(".yaml"):
        path.write_text("".join(f"{key}: {one}\n" for key, one in value.items()))
    elif name.endswith(".npz"):
        np.savez(path, **{key: one.numpy() for key, one in value.items()})
    elif name.endswith(".pt"):
        torch.save(value, path)
    else:
        save_file({key: one.contiguous() for key, one in value.items()}, path)
