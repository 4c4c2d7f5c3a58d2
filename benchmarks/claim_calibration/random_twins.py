"""Random twins: networks of village's shape with fresh random weights, and the best heads found in each on train.

Every claim has a network of its own, so claims are independent. The mechanism is the best set of one head in each
of the last three layers, found greedily on train prompts by how much its ablation lowers the metric; its controls
are all other such sets (a control family of 125, the smallest that can gate). Nothing is there to be found.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    Head,
    HeadSet,
    Prompts,
    bench_for,
    in_workers,
    probe_of,
)
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally, plain_verdict
from benchmarks.claim_calibration.running import Settings
from mechscope.records.canonical import hash_json, to_plain

BEHAVIORS = ("pronoun", "agreement", "one-hop", "bilingual", "arithmetic", "latent-two-hop")
"""Those with short prompts, in turn."""

N_PROMPTS = 200
"""Pairs of a twin's behaviour: 66 train, 33 validation, 101 held out."""

N_SEARCHED = 40
"""Train pairs that the search uses."""

N_LAYERS = 3
N_CHEATS = 100
"""Twins in which the heads are also chosen on the held-out prompts."""

HONEST_METRIC, HONEST_GAP, CHEAT = (
    "found on train",
    "found on train, fraction of the gap",
    "found on held-out",
)


@dataclass(frozen=True, kw_only=True)
class Twin:
    """One claim.

    Args:
        config: Folder of the configuration and the tokenizer.
        index: Of the claim: seeds weights and prompts.
        seed: Root.
        cheats: Also choose the heads on the held-out prompts.
    """

    config: str
    index: int
    seed: int
    cheats: bool

    @property
    def behavior(self) -> str:
        """Behaviours take turns."""
        return BEHAVIORS[self.index % len(BEHAVIORS)]


def run(settings: Settings) -> Rates:
    """Claims in random networks, each found on train.

    Cost: 36 sets on train and 126 on held-out prompts a claim; some seconds on one core.
    """
    start = perf_counter()
    folder = config_folder(settings.village)
    twins = [
        Twin(config=folder, index=index, seed=settings.seed, cheats=index < N_CHEATS)
        for index in range(settings.n_claims)
    ]
    rows = _judged(twins, settings)
    tallies = {HONEST_METRIC: Tally(), HONEST_GAP: Tally(), CHEAT: Tally()}
    for row in rows:
        for name, tally in tallies.items():
            if name in row["verdicts"]:
                tally.add_plain(row["verdicts"][name])
    gates = {HONEST_METRIC: "false", HONEST_GAP: "false", CHEAT: "exceeds"}
    return Rates(
        name="random-twins",
        settings=settings.facts()
        | {
            "behaviors": list(BEHAVIORS),
            "n_prompts": N_PROMPTS,
            "n_searched": N_SEARCHED,
            "n_layers": N_LAYERS,
        },
        hashes={
            "config_sha256": _config_hash(folder),
            "weights_and_prompts_sha256": hash_json([[row["weights"], row["held_out"]] for row in rows]),
        },
        independence="Every claim has a network and prompts of its own: other weights, other draws.",
        tallies={name: (Gate(kind=gates[name]), tally) for name, tally in tallies.items()},
        seconds=perf_counter() - start,
    )


def config_folder(village: str) -> str:
    """The folder of a bundled name, or the folder itself."""
    from mechscope.models.opening import BUNDLED

    bundled = BUNDLED / village
    return str(bundled if bundled.is_dir() else village)


def _judged(twins: list[Twin], settings: Settings) -> list[dict[str, Any]]:
    """Rows of all twins, those of an earlier run taken from its file."""
    settings.work.mkdir(parents=True, exist_ok=True)
    shape = _config_hash(twins[0].config)
    path = (
        settings.work
        / f"twins_{hash_json([shape, settings.seed, N_PROMPTS, N_SEARCHED, BEHAVIORS])[:16]}.jsonl"
    )
    known = _known(path)
    with path.open("a", encoding="utf-8") as file:

        def keep(row: dict[str, Any]) -> None:
            known[row["index"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()

        missing = [twin for twin in twins if twin.index not in known]
        in_workers(judge_twin, missing, n_workers=settings.n_workers, told=settings.told("twins"), keep=keep)
    return [known[twin.index] for twin in twins]


def _known(path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that an interruption cut
            continue
    return {row["index"]: row for row in rows}


def judge_twin(twin: Twin) -> dict[str, Any]:
    """Make a network, find its best heads on train, claim them, and judge the claim on held-out prompts."""
    from mechscope.behaviors.loading import load

    model = random_network(twin)
    behavior = load(twin.behavior, model, n=N_PROMPTS, seed=twin.index)
    table = _Table(model, behavior)
    found = best_heads(table.lowering("train"), table.n_layers, table.n_heads)
    verdicts = {
        HONEST_METRIC: table.verdict(found, "metric", seed=twin.index),
        HONEST_GAP: table.verdict(found, "gap", seed=twin.index),
    }
    if twin.cheats:
        chosen = best_heads(table.lowering("held_out"), table.n_layers, table.n_heads)
        verdicts[CHEAT] = table.verdict(chosen, "metric", seed=twin.index, sized_on="held_out")
    return {
        "index": twin.index,
        "behavior": twin.behavior,
        "heads": [list(head) for head in found],
        "weights": model.fingerprint.weights_sha256,
        "held_out": behavior.held_out.data_hash,
        "verdicts": {name: plain_verdict(verdict) for name, verdict in verdicts.items()},
    }


def random_network(twin: Twin) -> Any:
    """A network of the configuration's shape, its weights drawn as the library initialises them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from mechscope.models.opening import wrap
    from mechscope.records.seeds import seed_for

    config = AutoConfig.from_pretrained(twin.config)
    tokenizer = AutoTokenizer.from_pretrained(twin.config)
    torch.manual_seed(seed_for(twin.seed, "random twin", twin.index))
    hf = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    return wrap(hf, tokenizer, name=f"twin {twin.index}", check=False)


def best_heads(lowering: Callable[[list[HeadSet]], np.ndarray], n_layers: int, n_heads: int) -> HeadSet:
    """Greedily, one head in each of the last layers: those whose joint ablation lowers the metric most.

    Args:
        lowering: Mean lowering of each head set.
    """
    layers = range(max(0, n_layers - N_LAYERS), n_layers)
    chosen: HeadSet = ()
    while len(chosen) < len(layers):
        used = {layer for layer, _ in chosen}
        free = [(la, head) for la in layers if la not in used for head in range(n_heads)]
        candidates = [tuple(sorted((*chosen, head))) for head in free]
        chosen = candidates[int(np.argmax(lowering(candidates)))]
    return chosen


class _Table:
    """What was measured of one network so far."""

    def __init__(self, model: Any, behavior: Any) -> None:
        self.n_layers, self.n_heads = model.n_layers, model.n_heads
        self.model, self.behavior = model, behavior
        most = {"train": N_SEARCHED}
        self.benches = {split: bench_for(model, split, most.get(split, 0)) for split in behavior.splits}
        self.untouched = {s: bench.open_split(behavior, fresh_seed=None) for s, bench in self.benches.items()}
        self.known: dict[tuple[str, HeadSet], np.ndarray] = {}

    def after(self, split: str, sets: list[HeadSet]) -> np.ndarray:
        """The metric under each set's ablation, [set, prompt]."""
        from mechscope.claims.mechanisms import Components

        missing = [heads for heads in dict.fromkeys(sets) if (split, heads) not in self.known]
        if missing:
            mechanisms = [Components(heads) for heads in missing]
            found = self.benches[split].measure(
                mechanisms, probe_of(LOWERS), self.behavior, self.untouched[split]
            )
            self.known.update({(split, heads): row for heads, row in zip(missing, found, strict=True)})
        return np.stack([self.known[split, heads] for heads in sets])

    def lowering(self, split: str) -> Callable[[list[HeadSet]], np.ndarray]:
        """Mean lowering of head sets on a split."""
        clean = self.untouched[split].clean
        return lambda sets: (clean - self.after(split, sets)).mean(axis=1)

    def prompts(self, split: str) -> Prompts:
        """The split's labels and untouched metric."""
        held_out, part = self.untouched[split], self.behavior.splits[split]
        return Prompts(
            held_out.clean, held_out.corrupt, tuple(part.entities), tuple(part.templates), held_out.data_hash
        )

    def verdict(self, heads: HeadSet, unit: str, *, seed: int, sized_on: str = "validation") -> Any:
        """Size the claim that ablating these heads lowers the metric, and judge it on the held-out prompts."""
        splits = {
            s: split_of(self.prompts(s), np.arange(len(self.prompts(s))), has_corrupt=unit == "gap")
            for s in (sized_on, "held_out")
        }
        size = predicted_size(splits[sized_on], LOWERS, self.after(sized_on, [heads])[0], unit=unit)
        others = sets_in_the_same_layers(heads, self.n_heads)
        table = self.after("held_out", [heads, *others])
        measured = Measured(LOWERS, table[0], table[1:], len(others), unit)
        return verdict_on(splits["held_out"], [measured], [size], seed=seed)


def sets_in_the_same_layers(heads: HeadSet, n_heads: int) -> list[HeadSet]:
    """Every set of one head in each of the same layers that shares no head with this one."""
    sets: list[HeadSet] = [()]
    for layer, mine in heads:
        others: list[Head] = [(layer, head) for head in range(n_heads) if head != mine]
        sets = [(*chosen, other) for chosen in sets for other in others]
    return sets


def _config_hash(folder: str) -> str:
    plain = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return hash_json(to_plain(plain))
