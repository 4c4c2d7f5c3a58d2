"""Suite: the benchmarks by name. Each runs in a process of its own, so that its peak memory is its own."""

from collections.abc import Callable
from functools import partial

from benchmarks.lines import Line

Benchmark = Callable[[int], list[Line]]
"""From the number of pairs to lines."""


def _capture(shape: str, limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.capture import capture_everything

    return [capture_everything(shape, limit, n_pairs=n_pairs)]


def _patterns(shape: str, n_pairs: int) -> list[Line]:
    from benchmarks.capture import capture_patterns

    return [capture_patterns(shape, 1.15, n_pairs=n_pairs)]


def _grid(site: str, shares_quarter: bool, limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.grids import grid_lines

    return grid_lines(site, shares_quarter=shares_quarter, limit_speedup=limit, n_pairs=n_pairs)


def _steered(n_rows: int, n_new: int, n_pairs: int) -> list[Line]:
    from benchmarks.generation import steered

    return [steered("gpt2-small", n_rows=n_rows, n_new=n_new, n_pairs=n_pairs)]


def _import(n_pairs: int) -> list[Line]:
    from benchmarks.importing import import_mechscope

    return [import_mechscope(n_pairs=n_pairs)]


def _demo(n_pairs: int) -> list[Line]:
    from benchmarks.demonstration import demo_line

    return [demo_line(n_pairs=n_pairs)]


def _features(n_pairs: int) -> list[Line]:
    from benchmarks.feature_listing import list_features

    return list_features(n_pairs=n_pairs)


def _edges(method: str, n_steps: int, limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.edge_attribution import edge_attribution_line

    return [edge_attribution_line("gpt2-small", method, n_steps=n_steps, limit=limit, n_pairs=n_pairs)]


def _acdc(limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.circuits import acdc_line

    return [acdc_line(limit, n_pairs=n_pairs)]


def _acdc_sweep(limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.circuits import sweep_line

    return [sweep_line(limit, n_pairs=n_pairs)]


def _circuit_sizes(limit: float, n_pairs: int) -> list[Line]:
    from benchmarks.circuits import evaluation_line

    return [evaluation_line(limit, n_pairs=n_pairs)]


def _graph(n_pairs: int) -> list[Line]:
    from benchmarks.attribution_graphs import graph_lines

    return graph_lines(n_pairs)


def _long_graph(n_pairs: int) -> list[Line]:
    from benchmarks.attribution_graphs import long_lines

    return long_lines(n_pairs)


def _longest_graph(n_pairs: int) -> list[Line]:
    from benchmarks.attribution_graphs import long_lines

    return long_lines(n_pairs, n_tokens=500, max_latents=7500)


def _dictionary_step(name: str, n_pairs: int) -> list[Line]:
    from benchmarks.dictionary_steps import STEPS

    return [STEPS[name](n_pairs)]


def _harvest(n_pairs: int) -> list[Line]:
    from benchmarks.dictionary_steps import harvest_line

    return [harvest_line(n_pairs)]


def _end_to_end(n_pairs: int) -> list[Line]:
    from benchmarks.dictionary_steps import end_to_end_line

    return [end_to_end_line(n_pairs)]


def _dictionary_fvu(n_pairs: int) -> list[Line]:
    from benchmarks.dictionary_steps import final_fvu_line

    return [final_fvu_line(n_pairs)]


def _feature_index(n_pairs: int) -> list[Line]:
    from benchmarks.feature_index import index_lines

    return index_lines(n_pairs)


SUITE: dict[str, Benchmark] = {
    "import": _import,
    "demo": _demo,
    "features": _features,
    "capture": partial(_capture, "gpt2-small", 1.15),
    "capture-small": partial(_capture, "4-layer-256-wide", 1.25),
    "patterns": partial(_patterns, "gpt2-small"),
    "residual-grid": partial(_grid, "resid_pre", False, 9.0),
    "residual-grid-shared": partial(_grid, "resid_pre", True, 16.0),
    "heads-grid": partial(_grid, "z", False, 6.0),
    "heads-grid-shared": partial(_grid, "z", True, 7.5),
    "edges-eap": partial(_edges, "eap", 1, 1.5),
    "edges-eap-ig": partial(_edges, "eap-ig", 5, 1.5),
    "acdc": partial(_acdc, 5.0),
    "acdc-sweep": partial(_acdc_sweep, 0.5),
    "circuit-sizes": partial(_circuit_sizes, 5.0),
    "attribution-graph": _graph,
    "attribution-graph-200": _long_graph,
    "attribution-graph-500": _longest_graph,
    "steered": partial(_steered, 1, 64),
    "doses": partial(_steered, 32, 24),
    "step-topk": partial(_dictionary_step, "topk"),
    "step-topk-auxk": partial(_dictionary_step, "topk-auxk"),
    "step-jumprelu": partial(_dictionary_step, "jumprelu"),
    "step-matryoshka": partial(_dictionary_step, "matryoshka"),
    "dictionary-fvu": _dictionary_fvu,
    "harvest": _harvest,
    "training-end-to-end": _end_to_end,
    "feature-index": _feature_index,
}
"""Limits are the project's own; docs/benchmarks.md says where they come from."""
