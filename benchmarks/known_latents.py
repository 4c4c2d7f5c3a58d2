"""Has village a latent for what it is known to have? `python -m benchmarks.known_latents`

Five things whose truth is on record: the second language, a good mood, the planted trigger, "this is a test", and a
stated opinion. For each, latents of every bundled dictionary are ranked on train prompts; the dictionary, the reading
(at the last token, or the largest over the prompt) and the number of latents are chosen on validation prompts; AUROC
is measured on held-out ones, whose words and wordings the model never met in that role. Beside it stand shuffled
labels and a random dictionary whose latents fire as often. Then claims about latents are tested against other latents
of the dictionary: exchanged (latent_claims.py), held on where the thing is absent, off where it is (latent_holds.py).

Writes one JSON line a measurement; `passed` says whether a line met its target.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.known_prompts import CONCEPTS, Concept
from benchmarks.latent_reading import N_PAIRS, Side, read_side, scored

TARGET = 0.95
SIZES = (1, 2, 5)
"""Numbers of latents tried, the smallest that will do is taken."""

ENOUGH = 0.98
"""AUROC on validation prompts at which no more latents are asked for."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Latents chosen without a look at the held-out prompts.

    Args:
        site: Folder of the dictionary.
        reading: "last" or "largest".
        latents: Best first.
        validation: AUROC there.
    """

    site: str
    reading: str
    latents: tuple[int, ...]
    validation: float


def choose(train: Side, validation: Side) -> Choice:
    """The fewest latents that do, of the dictionary and reading that do best on validation prompts.

    No latents, and an AUROC of a half, where none is larger with the thing than without.
    """
    site, reading = next(iter(train.tables))
    best = Choice(site=site, reading=reading, latents=(), validation=0.5)
    for size in SIZES:
        for (site, reading), table in train.tables.items():
            latents = present(table, train.labels, size)
            if not latents:
                continue
            found = scored(train, validation, site, reading, latents)[0]
            if found > best.validation:
                best = Choice(site=site, reading=reading, latents=latents, validation=found)
        if best.validation >= ENOUGH:
            break
    return best


def present(table: np.ndarray, labels: np.ndarray, size: int) -> tuple[int, ...]:
    """The best-ranked latents that are larger where the thing is there."""
    from mechscope.dictionaries.evaluation.probing import ranked_latents

    order = ranked_latents(table, labels)
    larger = table[labels].mean(0) > table[~labels].mean(0)
    return tuple(int(i) for i in order if larger[i])[:size]


def shuffled(side: Side, seed: int) -> Side:
    """The same prompts with their labels in another order."""
    return Side(side.tables, np.random.default_rng(seed).permutation(side.labels), side.units)


def randomized(dictionary: Any, values: Any, seed: int) -> Any:
    """Latents that read random directions, each with a threshold at which it fires as often as the one it replaces.

    Args:
        dictionary: The trained one.
        values: What the site carries at some tokens, [token, d].
        seed: Of the directions.
    """
    import torch

    from mechscope.dictionaries.dictionary import Dictionary

    tensors = dict(dictionary.tensors)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tensors["W_enc"].shape, generator=generator)
    tensors["W_enc"] = rows * (tensors["W_enc"].norm(dim=0) / rows.norm(dim=0))
    share = (dictionary.encode(values) > 0).float().mean(0)
    everything = dict(tensors, b_enc=torch.zeros_like(tensors["b_enc"]))
    open_gate = dict(everything, threshold=torch.full_like(tensors["threshold"], -1e9))
    pre = Dictionary(dictionary.settings, open_gate).encode(values)
    thresholds = [torch.quantile(pre[:, i], 1 - share[i]) for i in range(pre.shape[1])]
    return Dictionary(dictionary.settings, dict(everything, threshold=torch.stack(thresholds)))


def measure_detection(
    concept: Concept, model: Any, dictionaries: dict[str, Any], controls: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The chosen latents, the controls, and every dictionary by itself."""
    from mechscope.dictionaries.evaluation.probing import auroc_with_interval

    sides = {split: read_side(model, dictionaries, concept.pairs(split, n)) for split, n in N_PAIRS.items()}
    train, validation, held_out = sides["train"], sides["validation"], sides["held_out"]

    def line(part: str, choice: Choice, fit: Side, test: Side, target: bool | None) -> dict[str, Any]:
        _, score = scored(fit, test, choice.site, choice.reading, choice.latents)
        found = auroc_with_interval(score, test.labels, test.units, 0)
        passed = None if target is None else (found.low >= TARGET) == target
        return {
            "concept": concept.name,
            "part": part,
            "site": choice.site,
            "reading": choice.reading,
            "latents": list(choice.latents),
            "validation_auroc": round(choice.validation, 4),
            "auroc": round(found.value, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
            "n_prompts": len(test.labels),
            "n_units": len(set(test.units.tolist())),
            "passed": passed,
        }

    chosen = choose(train, validation)
    yield line("chosen", chosen, train, held_out, True)
    mixed = [shuffled(side, seed) for seed, side in enumerate((train, validation, held_out))]
    yield line("shuffled labels", choose(mixed[0], mixed[1]), mixed[0], mixed[2], False)
    random_sides = {
        split: read_side(model, controls, concept.pairs(split, n)) for split, n in N_PAIRS.items()
    }
    chance = choose(random_sides["train"], random_sides["validation"])
    yield line("random dictionary", chance, random_sides["train"], random_sides["held_out"], None)
    for site in dictionaries:
        for reading in ("last", "largest"):
            key = (site, reading)
            one = [Side({key: side.tables[key]}, side.labels, side.units) for side in (train, validation)]
            yield line("each", choose(one[0], one[1]), train, held_out, None)


def opened(model: Any, folder: Path | None) -> dict[str, Any]:
    """The bundled dictionaries, or those under a folder, by name, on the model."""
    from mechscope.dictionaries.evaluation.reading import fitted
    from mechscope.features.index import FeatureIndex
    from mechscope.features.shipped import bundled_indexes

    places = (
        bundled_indexes("village")
        if folder is None
        else {p.parent.name: p.parent for p in folder.glob("*/manifest.json")}
    )
    return {name: fitted(FeatureIndex(place).dictionary(), model) for name, place in sorted(places.items())}


def random_twins(model: Any, dictionaries: dict[str, Any]) -> dict[str, Any]:
    """A random dictionary for each, matched in how often latents fire on text of the language."""
    import torch

    from mechscope.specimens.village.language import sample_text

    tokens = model.tokens(sample_text(200, seed=2, misbehaving=True))
    sites = sorted({str(one.reads[0]) for one in dictionaries.values()})
    with torch.no_grad():
        cache = model.run(tokens, capture=sites).cache
    mask = tokens.mask.bool().clone()
    mask[torch.arange(len(tokens)), tokens.n_pad] = False
    return {
        name: randomized(one, cache[str(one.reads[0])][mask], seed)
        for seed, (name, one) in enumerate(dictionaries.items())
    }


def table_of(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table for a person."""
    rows = []
    for line in lines:
        if line["part"] == "each":
            continue
        head = f"{line['concept']:<11} {line['part']:<18} "
        if "auroc" in line:
            interval = f"[{line['low']:.3f}, {line['high']:.3f}]"
            told = f"AUROC {line['auroc']:.3f} {interval}  {line['site']} {line['reading']} {line['latents']}"
        else:
            told = "  ".join(f"{k} {v}" for k, v in line.items() if k not in ("concept", "part", "passed"))
        rows.append(head + told)
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/known_latents.jsonl"))
    parser.add_argument("--dictionaries", type=Path, default=None, help="instead of the bundled ones")
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), choices=list(CONCEPTS))
    parser.add_argument("--only", choices=("detection", "claims"), default=None)
    given = parser.parse_args()
    import mechscope as ms
    from benchmarks.latent_claims import measure_claims

    model = ms.load("village")
    dictionaries = opened(model, given.dictionaries)
    controls = random_twins(model, dictionaries) if given.only != "claims" else {}
    lines: list[dict[str, Any]] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w") as file:
        for name in given.concepts:
            found: list[dict[str, Any]] = []
            if given.only != "claims":
                found += measure_detection(CONCEPTS[name], model, dictionaries, controls)
            if given.only != "detection":
                found += measure_claims(CONCEPTS[name], model, dictionaries)
            for line in found:
                file.write(json.dumps(line) + "\n")
            file.flush()
            lines += found
            print(table_of(found), file=sys.stderr, flush=True)
    sys.exit(0 if all(line["passed"] is not False for line in lines) else 1)


if __name__ == "__main__":
    main()
