"""Checkpoints of a training run: every tensor of every learner and its optimiser, in one safetensors file.

Invariant: the file is whole or absent, every number comes back bit for bit. Refuses a checkpoint of another recipe.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mechscope.dictionaries.training.learner import Learner
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_tensor_metadata, open_tensors, save_tensors
from mechscope.vocabulary.errors import BadFile

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, learners: Sequence[Learner], *, step: int, recipe: Mapping[str, Any]
) -> None:
    """Write the state after `step` steps; the previous checkpoint is replaced only by a whole one.

    Raises:
        DiskFull: no room; the previous checkpoint stands.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, learner in enumerate(learners):
        tensors |= {f"{i}/params/{name}": value.detach() for name, value in learner.params.items()}
        tensors |= {f"{i}/state/{name}": value for name, value in learner.state.items()}
        tensors[f"{i}/dead"] = learner.dead
        for name, value in learner.params.items():
            moments = learner.optimizer.state.get(value, {})
            tensors |= {f"{i}/adam/{name}/{key}": moment for key, moment in moments.items()}
    save_tensors(folder / FILE, tensors, {"step": step, "recipe": hash_json(recipe)})


def open_checkpoint(folder: Path, learners: Sequence[Learner], *, recipe: Mapping[str, Any]) -> int | None:
    """Read a checkpoint into learners; returns its step, or None where there is none.

    Raises:
        BadFile: it was made with other settings, text or model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    metadata = open_tensor_metadata(path)
    if metadata["recipe"] == hash_json(_before_prices(recipe)) != hash_json(recipe):
        raise BadFile(
            f"{path.name} was begun when crosscoders' latents had another price.",
            got="a run whose recipe does not say how they are priced",
            because="it may be the norm of all sites as one vector; now it is the sum of the norms at each",
            instead="an empty folder: the run from its beginning",
        )
    if metadata["recipe"] != hash_json(recipe):
        raise BadFile(
            f"{path.name} belongs to another training run.",
            got=f"recipe {str(metadata['recipe'])[:12]}, this run's is {hash_json(recipe)[:12]}",
            because="settings, sites, text or model differ",
            instead="an empty folder, or what the folder was begun with",
        )
    tensors = open_tensors(path, framework="torch")
    with torch.no_grad():
        for i, learner in enumerate(learners):
            _restore(learner, i, tensors)
    return int(metadata["step"])  # pyright: ignore[reportArgumentType]


def _before_prices(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as it was before jobs said how crosscoders' latents are priced."""
    jobs = [{key: value for key, value in job.items() if key != "price"} for job in recipe.get("jobs", ())]
    return {**recipe, "jobs": jobs}


def _restore(learner: Learner, i: int, tensors: Mapping[str, torch.Tensor]) -> None:
    start = f"{i}/state/"
    learner.state = {
        name.removeprefix(start): value.to(learner.device)
        for name, value in tensors.items()
        if name.startswith(start)
    }
    learner.dead = tensors[f"{i}/dead"].to(learner.device)
    for name, value in learner.params.items():
        value.copy_(tensors[f"{i}/params/{name}"])
        start = f"{i}/adam/{name}/"
        moments = {key.removeprefix(start): found for key, found in tensors.items() if key.startswith(start)}
        if moments:
            learner.optimizer.state[value] = {key: found.to(learner.device) for key, found in moments.items()}
