"""Checkpoints of a specimen in training: weights and optimizer state in one safetensors file.

Owns: saving and reading back exactly. Refuses: a checkpoint of another recipe.
Invariant: the file is whole or absent; every number comes back bit for bit.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechscope.vocabulary.errors import BadFile

if TYPE_CHECKING:
    import torch

_FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    *,
    model: "torch.nn.Module",
    optimizers: tuple["torch.optim.Optimizer", ...],
    recipe: Any,
    step: int,
) -> None:
    """Write the state after `step` steps, replacing the previous checkpoint only when it is whole."""
    from safetensors.torch import save

    from mechscope.records.files import write_atomically

    tensors = {f"model/{name}": value.detach().contiguous() for name, value in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer {index}/{number}/{key}": value for key, value in state.items()}
    metadata = {"step": str(step), "recipe": json.dumps(asdict(recipe), sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / _FILE) as file:
        file.write(save(tensors, metadata=metadata))


def open_checkpoint(
    folder: Path, *, model: "torch.nn.Module", optimizers: tuple["torch.optim.Optimizer", ...], recipe: Any
) -> int | None:
    """Read a checkpoint into the model and the optimizers; return its step, or None where there is none.

    Raises:
        BadFile: the checkpoint was made with another recipe.
    """
    import torch
    from safetensors import safe_open

    path = folder / _FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        expected = json.dumps(asdict(recipe), sort_keys=True)
        if metadata["recipe"] != expected:
            raise BadFile(
                f"{path.name} belongs to another training run",
                got=metadata["recipe"],
                because=f"this run's recipe is {expected}",
                instead="use an empty folder, or the recipe that the folder was begun with",
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model/{name}"])
    for index, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            owner, *rest = name.split("/")
            if owner == f"optimizer {index}":
                states.setdefault(int(rest[0]), {})[rest[1]] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
