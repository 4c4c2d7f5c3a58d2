"""Circuits against known truths: every method on every compiled program and on the induction specimen, as a table.

    python -m benchmarks.circuit_truth [--pairs N]

Not timed. AUROC is of scores over all edges; precision and recall are ACDC's, at a threshold of 5e-4 of its range.
"""

import argparse
import sys
from collections.abc import Iterator

import numpy as np

from mechscope.behaviors.loading import load as load_behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.against_truth import compare_with_truth
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.methods.acdc import Acdc, Search
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.specimens.compiled import PROGRAMS, truth_of

SCORED = ("eap", "eap-ig", "eap-ig-activations", "edge-patching", "edge-pruning")
INTEGRATED = ("eap-ig", "eap-ig-activations")
"""Of these the edges that no gradient reaches are counted."""

SHARE = 5e-4


def rows(n_pairs: int) -> Iterator[list[str]]:
    """One row a program."""
    for name in sorted(PROGRAMS):
        model = load(f"compiled/{name}")
        split = load_behavior(f"compiled/{name}", model, n=4 * n_pairs, seed=0).train
        split = split.select(range(min(n_pairs, len(split))))
        truth = Circuit.of(model, truth_of(name).edges("resample"))
        row = [name, str(truth.wiring.n_edges), str(len(truth))]
        for ablation in ("resample", "zero"):
            compared = compare_with_truth(
                _by_acdc(model, split, ablation), Circuit.of(model, truth_of(name).edges(ablation))
            )
            row.append(f"{compared.precision:.2f}/{compared.recall:.2f}")
        for method in SCORED:
            row.append(_auroc(model, split, truth, method, 0))
            if method == "eap-ig":
                row.append(_auroc(model, split, truth, method, 2 * len(truth)))
            if method in INTEGRATED:
                found = discover(model, split, method=method, n_edges=len(truth))
                row.append(str(found.numbers["n_without_gradient"]))
        yield row


def _auroc(model: Model, split: Split, truth: Circuit, method: str, verify: int) -> str:
    more = {"verify": verify} if method.startswith("eap") else {}
    found = discover(model, split, method=method, n_edges=2 * len(truth), **more)
    auroc = compare_with_truth(found, truth).auroc
    return "" if auroc is None else f"{auroc:.3f}"


def _by_acdc(model: Model, split: Split, ablation: str) -> Circuit:
    conventions = Conventions(ablation="zero" if ablation == "zero" else "resample")
    search = Search(model, split, Acdc(threshold=0.0, distance="change", conventions=conventions))
    return search.circuit(search.run(SHARE * search.range))


def main() -> None:
    """Write the table to stdout as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=48)
    heads = ["program", "edges", "true", "ACDC resample", "ACDC zero", "eap", "eap-ig", "eap-ig verified"]
    heads += ["without gradient", "eap-ig-activations", "without gradient", "edge-patching", "edge-pruning"]
    write = sys.stdout.write
    write("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n")
    found = []
    for row in rows(parser.parse_args().pairs):
        found.append(row)
        write("| " + " | ".join(row) + " |\n")
        sys.stdout.flush()
    scored = (5, 6, 7, 9, 11, 12)
    cells = ["median", *[""] * (len(heads) - 1)]
    for i in scored:
        cells[i] = f"{np.median([float(row[i]) for row in found]):.3f}"
    write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
