"""Do dictionaries recover what was planted? `python -m benchmarks.planted_recovery --out runs/planted.jsonl`

Trains TopK, BatchTopK, JumpReLU and Matryoshka on planted activations and writes one JSON line a training: share of
features recovered (Hungarian, one to one, cosine > 0.9), precision, splitting, absorption. Three parts: `reference`
(8 on at a token), `table` (4, 8, 16, 32 on), `variants` (hierarchy, correlation, heavy tails, noise), each architecture
beside its shuffled control in the reference part. Lines that are there already are not computed again.

The target is 95% on the reference part; `passed` says whether a line met it, the table and the variants report.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechscope.records.files import save_text
from mechscope.specimens import planted

if TYPE_CHECKING:
    from mechscope.dictionaries.training.spec import Revival

TARGET = 0.95
ARCHITECTURES = ("topk", "batch_topk", "jumprelu", "matryoshka")
L0S = (4, 8, 16, 32)
LEAST_FIRINGS = 1000
HELD_OUT_TOKENS = 20_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training.

    Args:
        part: "reference", "table", "variants" or "control".
        architecture: Of the dictionary.
        variant: Of the planted data.
        n_active: Features on at a token, and the dictionary's L0.
        is_shuffled: The control: nothing can be recovered.
        n_features: Planted, and the dictionary's latents.
        d_model: Of the activations.
        passes: Tokens in all, in units of those that let every feature fire 1,000 times.
        batch: Tokens a step. Steps of 2,048 are too few of so many tokens (`--batch 2048`); chosen with seed 0.
        rate: Of Adam. Three times the trainer's own at this width, which leaves TopK unfinished (`--rate 0.001`);
            chosen with seed 0.
        dead_after: A latent is dead after so many tokens, in units of those that hold one firing of a feature.
        seed: Of data and training.
    """

    part: str
    architecture: str
    variant: str = "reference"
    n_active: float = 8.0
    is_shuffled: bool = False
    n_features: int = 4096
    d_model: int = 256
    passes: float = 8.0
    batch: int = 512
    rate: float = 3e-3
    dead_after: float = 30.0
    seed: int = 0

    @property
    def settings(self) -> planted.PlantedSettings:
        """What is planted."""
        return replace(
            planted.VARIANTS[self.variant](seed=self.seed),
            n_active=self.n_active,
            n_features=self.n_features,
            d_model=self.d_model,
        )

    @property
    def revival(self) -> "Revival":
        """As many dead latents learn at a token as features are on at one: with more they learn mixtures."""
        from mechscope.dictionaries.training.spec import Revival

        return Revival(
            dead_after_tokens=round(self.dead_after * self.n_features / self.n_active),
            aux_k=round(self.n_active),
            aux_share=1.0,
        )


def cases_of(parts: list[str], **shared: Any) -> Iterator[Case]:
    """Every training of the parts asked for, the most telling first."""
    for architecture in ARCHITECTURES:
        if "reference" in parts:
            yield Case(part="reference", architecture=architecture, **shared)
    for architecture in ARCHITECTURES:
        if "control" in parts:
            yield Case(part="control", architecture=architecture, is_shuffled=True, **shared)
        for n_active in L0S if "table" in parts else ():
            if n_active != 8:  # that is the reference
                yield Case(part="table", architecture=architecture, n_active=float(n_active), **shared)
        for variant in planted.VARIANTS if "variants" in parts else ():
            if variant != "reference":
                yield Case(part="variants", architecture=architecture, variant=variant, **shared)


def run_case(case: Case, *, device: str = "cpu") -> dict[str, Any]:
    """Train one dictionary and score it on held-out tokens."""
    import torch

    from mechscope.dictionaries.training.spec import Job, Training
    from mechscope.dictionaries.training.trainer import Trainer
    from mechscope.specimens.planted.blocks import PLANTED_SITE, PlantedBlocks

    truth = planted.plant(case.settings)
    n_tokens = int(case.passes * LEAST_FIRINGS / float(truth.rates.median()))
    stream = planted.PlantedStream(
        truth=truth,
        n_tokens=n_tokens,
        batch_tokens=min(2**16, n_tokens),
        device=device,
        is_shuffled=case.is_shuffled,
    )
    training = Training(batch=case.batch, rate=case.rate, revival=case.revival, seed=case.seed)
    began = time.perf_counter()
    (dictionary,) = Trainer(
        PlantedBlocks(stream),
        [Job(reads=(PLANTED_SITE,), config=architecture_of(case))],
        training=training,
        device=device,
    ).run()
    seconds = time.perf_counter() - began
    held_out = replace(
        stream, n_tokens=HELD_OUT_TOKENS, batch_tokens=HELD_OUT_TOKENS, split="held_out"
    ).batch(0)
    with torch.no_grad():
        codes = dictionary.encode_sparse(held_out.activations)
    fired = planted.Firings(
        token=codes.tokens.cpu(),
        unit=codes.latents.cpu(),
        value=codes.values.float().cpu(),
        n_tokens=HELD_OUT_TOKENS,
        n_units=case.n_features,
    )
    score = planted.score_dictionary(
        truth, dictionary.decoder_rows().float().cpu(), codes=fired, features=held_out.codes
    )
    numbers = {name: value for name, value in asdict(score).items() if name not in ("cosine", "settings")}
    return {
        "case": asdict(case),
        **numbers,
        "l0": len(codes.values) / HELD_OUT_TOKENS,
        "mean_cosine": float(score.cosine.mean()),
        "train_tokens": n_tokens,
        "least_firings": float(truth.rates.min()) * n_tokens,
        "seconds": seconds,
        "device": device,
        "passed": score.recovered >= TARGET
        if case.part == "reference"
        else score.recovered == 0.0
        if case.part == "control"
        else None,
    }


def architecture_of(case: Case) -> Any:
    """The dictionary's architecture: as many latents as features, and L0 as many as are on."""
    from mechscope.dictionaries.architectures.batch_topk import BatchTopK
    from mechscope.dictionaries.architectures.jumprelu import JumpReLU
    from mechscope.dictionaries.architectures.matryoshka import Matryoshka
    from mechscope.dictionaries.architectures.topk import TopK

    width, k = case.n_features, case.n_active
    return {
        "topk": lambda: TopK(width=width, k=round(k)),
        "batch_topk": lambda: BatchTopK(width=width, k=k),
        "jumprelu": lambda: JumpReLU(width=width, l0=k),
        "matryoshka": lambda: Matryoshka(width=width, k=k),
    }[case.architecture]()


def done_already(out: Path) -> list[dict[str, Any]]:
    """Lines of an earlier run; a last line that was cut off is left out."""
    found: list[dict[str, Any]] = []
    for line in out.read_text().splitlines() if out.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out a torn line: {line[:40]}", file=sys.stderr)
    return found


def table_of(lines: list[dict[str, Any]]) -> str:
    """The lines as a table for a person."""
    columns = ("recovered", "precision", "split", "absorption", "firing_recall", "l0", "live")
    rows = ["part        data          L0 architecture " + " ".join(f"{name:>13}" for name in columns)]
    for line in lines:
        case = line["case"]
        values = " ".join(
            f"{line[name]:13.3f}" if line[name] is not None else f"{'-':>13}" for name in columns
        )
        rows.append(
            f"{case['part']:<11} {case['variant']:<13} {case['n_active']:<3g}{case['architecture']:<13} {values}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/planted_recovery.jsonl"))
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["reference", "control", "table", "variants"],
        choices=["reference", "control", "table", "variants"],
    )
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passes", type=float, default=Case.passes)
    parser.add_argument("--batch", type=int, default=Case.batch)
    parser.add_argument("--rate", type=float, default=Case.rate)
    parser.add_argument("--n-features", type=int, default=Case.n_features)
    parser.add_argument("--d-model", type=int, default=Case.d_model)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = done_already(given.out)
    save_text(given.out, "".join(json.dumps(line) + "\n" for line in lines))  # without a torn end
    shared = {
        name: getattr(given, name) for name in ("passes", "batch", "rate", "n_features", "d_model", "seed")
    }
    for case in cases_of(given.parts, **shared):
        if case.architecture not in given.architectures or any(one["case"] == asdict(case) for one in lines):
            continue
        lines.append(run_case(case, device=given.device))
        with given.out.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), flush=True)
    print(table_of(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
