"""Measuring: the metric of many head sets on many prompts, once, in worker processes, kept in files.

A task is measured as a claim's bench measures it and saved under the hash of what was asked; a second run finds
the file. Workers use one thread each: small models gain more from two processes than from two threads.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.data.units import units_of
from mechscope.records.canonical import hash_json, to_plain
from mechscope.records.files import open_tensors, save_tensors

Head = tuple[int, int]
HeadSet = tuple[Head, ...]

LOWERS, RECOVERS, RAISES = "lowers", "recovers", "raises"

DOSE = 0.2
"""Of steering, in reference norms: small, so that about half of all directions raise the metric."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where prompts come from.

    Args:
        model: Bundled name or folder.
        behavior: Its name.
        n: Pairs in all three splits.
        seed: Of the draw.
    """

    model: str
    behavior: str
    n: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """Some head sets on one split.

    Args:
        source: Prompts and model.
        split: "train", "validation" or "held_out".
        kind: "lowers" (clean prompts, the set mean-ablated) or "recovers" (corrupt prompts, the set restored).
        sets: Head sets; with `n_subspaces`, one set that random subspaces are drawn for.
        n_subspaces: Draws of random subspaces in the place of the set.
        most: Only so many prompts of the split; 0 is all.
    """

    source: Source
    split: str
    kind: str
    sets: tuple[HeadSet, ...]
    n_subspaces: int = 0
    most: int = 0

    @property
    def key(self) -> str:
        """Names its file."""
        return hash_json(to_plain(asdict(self)))[:24]


@dataclass(frozen=True, eq=False)
class Prompts:
    """What claims need to know of a split's prompts.

    Args:
        clean: The metric without intervention.
        corrupt: The same on the corrupt prompts.
        entities: Of each prompt.
        templates: Of each prompt.
        data_hash: Of the split.
    """

    clean: np.ndarray
    corrupt: np.ndarray
    entities: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def n_units(self) -> int:
        """Held-out units among all of them."""
        return units_of(list(self.entities), list(self.templates)).n_units


def measure(tasks: Sequence[Task], *, folder: Path, n_workers: int, told: Callable[[str], None]) -> None:
    """Measure what is not there yet; afterwards `table_of` finds all of it.

    Args:
        folder: Where tables are kept between runs.
        n_workers: Processes, one thread each.
        told: Told of progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not (folder / f"{task.key}.safetensors").is_file()]
    in_workers(_measure_and_save, [(task, str(folder)) for task in missing], n_workers=n_workers, told=told)


def in_workers(
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
    *,
    n_workers: int,
    told: Callable[[str], None],
    keep: Callable[[Any], None] = lambda result: None,
) -> None:
    """Call a module's function on each argument in fresh processes of one thread; results go to `keep`."""
    if not arguments:
        return
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        for done, result in enumerate(pool.map(function, arguments), start=1):
            keep(result)
            told(f"{done} of {len(arguments)}")


def table_of(task: Task, *, folder: Path) -> np.ndarray:
    """What was measured, [set or draw, prompt]."""
    return open_tensors(folder / f"{task.key}.safetensors")["after"]  # type: ignore[return-value]


def chunks(sets: Sequence[HeadSet], size: int = 24) -> list[tuple[HeadSet, ...]]:
    """Head sets in portions of one task each."""
    return [tuple(sets[start : start + size]) for start in range(0, len(sets), size)]


@cache
def opened(model: str) -> Any:
    """An open model, one a process."""
    from mechscope.models.opening import load

    return load(model)


@cache
def behavior_of(source: Source) -> Any:
    """The behaviour of a source, one a process."""
    from mechscope.behaviors.loading import load

    return load(source.behavior, opened(source.model), n=source.n, seed=source.seed)


def prompts_of(source: Source, split: str, *, most: int = 0) -> Prompts:
    """A split's labels and what the untouched model answers."""
    bench, behavior = bench_for(opened(source.model), split, most), behavior_of(source)
    held_out = bench.open_split(behavior, fresh_seed=None)
    part = bench.prompts.tested(behavior)
    return Prompts(
        held_out.clean, held_out.corrupt, tuple(part.entities), tuple(part.templates), held_out.data_hash
    )


def bench_for(model: Any, split: str, most: int = 0) -> Any:
    """A claim's bench that reads another split (or some of it) where a test reads the held-out one."""
    from mechscope.claims.bench import EngineBench

    return EngineBench(model, split=split, most=most)


def probe_of(kind: str) -> Any:
    """The prediction whose intervention is measured; its size plays no part."""
    from mechscope.claims.predictions import lowers, raises, recovers

    if kind == RAISES:
        return raises(1.0, dose=DOSE)
    return lowers(1.0, unit="gap", how="mean") if kind == LOWERS else recovers(1.0)


def _measure_and_save(argument: tuple[Task, str]) -> None:
    from mechscope.claims.control_families import draw_family
    from mechscope.claims.controls import SUBSPACES
    from mechscope.claims.mechanisms import Components

    task, folder = argument
    model, behavior = opened(task.source.model), behavior_of(task.source)
    bench = bench_for(model, task.split, task.most)
    held_out = bench.open_split(behavior, fresh_seed=None)
    mechanisms: list[Any] = [Components(heads) for heads in task.sets]
    if task.n_subspaces:
        reference = behavior.train.clean
        drawn = draw_family(
            model, mechanisms[0], reference=reference, family=SUBSPACES, n_draws=task.n_subspaces, seed=0
        )
        mechanisms = list(drawn.mechanisms)
    after = bench.measure(mechanisms, probe_of(task.kind), behavior, held_out)
    save_tensors(Path(folder) / f"{task.key}.safetensors", {"after": after}, metadata={})
