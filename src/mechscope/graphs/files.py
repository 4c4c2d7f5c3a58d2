"""Files: from a prompt and a path of dictionaries to the files that people open: page, record, front ends' JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.opening import open_dictionary
from mechscope.dictionaries.saving import is_ours
from mechscope.graphs.budget import Budget
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.exchange import save_graph_json
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.supernodes import propose_supernodes
from mechscope.models.model import Model
from mechscope.records.files import save_text
from mechscope.vocabulary.errors import BadFile


def write_graph_files(
    model: Model,
    prompt: Any,
    *,
    transcoders: str | Path | Sequence[Dictionary],
    out: str | Path,
    targets: Any = None,
    shares: tuple[float, float] = (0.8, 0.98),
    max_latents: int | Budget | None = 7500,
) -> AttributionGraph:
    """Trace a prompt and write what was found to a folder; returns the pruned graph.

    Writes `graph.html` (a page to explore), `graph.json` and `graph.safetensors` (the pruned graph's record) and
    `frontend.json` (for circuit-tracer's and Neuronpedia's front ends).

    Args:
        model: An open model.
        prompt: One text or its ids.
        transcoders: Dictionaries; or a dictionary's path, or a folder with one in each subfolder.
        out: Folder; made if it is not there.
        targets: As in `attribution_graph`.
        shares: Of nodes' and of edges' influence that pruning keeps.
        max_latents: As in `attribution_graph`.

    Raises:
        BadFile: no dictionaries at the path.
    """
    given = open_transcoders(transcoders) if isinstance(transcoders, str | Path) else list(transcoders)
    graph = attribution_graph(model, given, prompt, targets=targets, max_latents=max_latents)
    small = graph.prune(*shares)
    small = small.with_supernodes(propose_supernodes(small))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_text(folder / "graph.html", small.to_html())
    small.save(folder / "graph.json")
    save_graph_json(small, folder / "frontend.json", slug=folder.resolve().name, node_threshold=shares[0])
    return small


def open_transcoders(path: str | Path) -> list[Dictionary]:
    """The dictionary at a path, or those in a folder's subfolders, in the order of their names' numbers.

    Raises:
        BadFile: none there.
    """
    place = Path(path)
    inner = sorted((one for one in place.iterdir() if one.is_dir()), key=_numbers) if place.is_dir() else []
    trained = [one for one in inner if is_ours(one)]
    if trained:  # beside them lie the checkpoint and the log of their training
        return [open_dictionary(one) for one in trained]
    holds_files = place.is_dir() and any(one.is_file() and one.suffix != ".md" for one in place.iterdir())
    if inner and not holds_files:
        return [open_dictionary(one) for one in inner]
    if place.is_dir() and not holds_files:
        raise BadFile(
            f"There are no dictionaries in {place.name}.",
            got=str(path),
            because="the folder is empty",
            instead="a dictionary's folder, or a folder with one dictionary in each subfolder",
        )
    return [open_dictionary(path)]


def _numbers(place: Path) -> list[tuple[int, int | str]]:
    """layer_2 before layer_10."""
    parts = "".join(c if c.isdigit() else f" {c} " for c in place.name).split()
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
