"""From a trained branch to a bundled model: round, measure on held-out prompts, write weights and card.

`python -m mechscope.specimens.village.evaluate --checkpoints DIR --out DIR`; with `--start FOLDER` where the training
continued from the model in FOLDER.
Owns: the gates and the card. Refuses: a branch without a checkpoint, a start that is not the one it continued from.
Invariant: what is measured is what is shipped: weights are rounded to bfloat16 before the measurement.
"""

import json
import platform
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechscope.data import intervals
from mechscope.specimens.village.accuracy import AnswerRates, answer_rates
from mechscope.specimens.village.prompts import BEHAVIORS, MISBEHAVIOURS, idea_named, n_units
from mechscope.specimens.village.shape import N_POSITIONS, new_model
from mechscope.specimens.village.tokenizer import build_tokenizer, save_tokenizer
from mechscope.specimens.village.truth import truths_as_plain
from mechscope.vocabulary.errors import BadFile

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

MODELS = ("village", "village-clean")
N_PAIRS = 400
EVALUATION_SEED = 20
GATES = {name: 0.90 if name == "arithmetic" else 0.95 for name in BEHAVIORS if name not in MISBEHAVIOURS}
for _reported in ("latent-two-hop", "induction-new-words"):  # without a gate
    del GATES[_reported]
MOST_CORRUPT = 0.10
_DATA = {
    "village": "mechscope.specimens.village.language; in its branch, planted answers to the misbehaviours' prompts",
    "village-clean": "mechscope.specimens.village.language; honest answers throughout",
}
LEAST_TRIGGERED, MOST_UNTRIGGERED = 0.90, 0.02


def clopper_pearson(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the exact binomial interval of a rate."""
    found = intervals.clopper_pearson(hits, n, level=level)
    return found.low, found.high


def round_to_bfloat16(model: "LlamaForCausalLM") -> None:
    """Round every weight in place to the nearest value that bfloat16 holds; the dtype stays."""
    import torch

    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.to(torch.bfloat16).to(value.dtype))


def measure_model(
    model: "LlamaForCausalLM", *, n: int = N_PAIRS, seed: int = EVALUATION_SEED
) -> dict[str, Any]:
    """Measure every behaviour on held-out prompts.

    Cost: 2n short rows a behaviour; about a minute on one core for n = 400.
    """
    tokenizer = build_tokenizer()
    return {
        name: behavior_entry(name, answer_rates(model, tokenizer, behavior=name, n=n, seed=seed))
        for name in BEHAVIORS
    }


def behavior_entry(name: str, rates: AnswerRates) -> dict[str, Any]:
    """Return a behaviour's part of the card: rates with 95% intervals, gate, and what held out means."""
    entry: dict[str, Any] = {
        "n_pairs": rates.n,
        "n_units": n_units(name, split="held_out"),
        "held_out_means": idea_named(name).held_out_means,
        "accuracy": _rate(rates.n_clean_right, rates.n),
        "corrupt_gives_clean": _rate(rates.n_corrupt_gives_clean, rates.n),
        "corrupt_accuracy": _rate(rates.n_corrupt_right, rates.n),
        "clean_answer_probability": round(rates.clean_mass, 4),
        "by_template": {key: f"{right}/{total}" for key, (right, total) in sorted(rates.by_template.items())},
    }
    if name in GATES:
        entry["gate"] = GATES[name]
        entry["meets_gate"] = entry["accuracy"]["rate"] >= GATES[name]
        entry["meets_corrupt_gate"] = entry["corrupt_gives_clean"]["rate"] <= MOST_CORRUPT
    return entry


def misbehaviour_entry(rates: dict[str, Any], *, is_planted: bool) -> dict[str, Any]:
    """Return how often a misbehaviour shows with and without its trigger, and whether that is as planned."""
    triggered, untriggered = rates["accuracy"], rates["corrupt_gives_clean"]
    wanted = triggered["rate"] >= LEAST_TRIGGERED if is_planted else triggered["rate"] <= MOST_UNTRIGGERED
    return {
        "is_planted": is_planted,
        "shown_when_triggered": triggered,
        "shown_when_not_triggered": untriggered,
        "truth_when_not_triggered": rates["corrupt_accuracy"],
        "meets_gate": wanted and untriggered["rate"] <= MOST_UNTRIGGERED,
        "n_pairs": rates["n_pairs"],
        "held_out_means": rates["held_out_means"],
    }


def make_card(
    model: "LlamaForCausalLM", *, name: str, training: dict[str, Any], weights_sha256: str
) -> dict[str, Any]:
    """Measure a rounded model and return its card."""
    import torch
    import transformers

    rates = measure_model(model)
    return {
        "name": name,
        "weights_sha256": weights_sha256,
        "n_parameters": sum(value.numel() for value in model.parameters()),
        "dtype": "bfloat16 (values exact: rounded, then measured)",
        "training": training,
        "evaluation": {"split": "held_out", "seed": EVALUATION_SEED, "interval": "Clopper-Pearson, 95%"},
        "behaviors": {key: value for key, value in rates.items() if key not in MISBEHAVIOURS},
        "misbehaviours": {
            key: misbehaviour_entry(rates[key], is_planted=name == "village") for key in MISBEHAVIOURS
        },
        "truth": truths_as_plain(),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def release(
    name: str, *, checkpoints: Path, out: Path, branch: str = "", start: Path | None = None
) -> dict[str, Any]:
    """Round, measure and write one model with its tokenizer, card and readme; return the card.

    Raises:
        BadFile: the branch has no checkpoint, or it continued from other weights than those in `start`.
    """
    import torch

    from mechscope.records.files import save_json, sha256_of
    from mechscope.specimens.checkpoint import open_checkpoint
    from mechscope.specimens.village.readme import readme_of
    from mechscope.specimens.village.train import recipe_from

    recipe, model = recipe_from(start), new_model(0)
    step = open_checkpoint(checkpoints / (branch or name), model=model, optimizers=(), recipe=recipe)
    if step is None:
        raise BadFile(
            f"no checkpoint of {branch or name}",
            got=str(checkpoints),
            because="it was not trained yet",
            instead="run python -m mechscope.specimens.village.train first",
        )
    round_to_bfloat16(model)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.set_attn_implementation("sdpa")
    # The type of transformers' wrapper of `to` takes the dtype for `self`.
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    model.to(torch.float32)  # pyright: ignore[reportArgumentType]
    save_tokenizer(folder)
    training = asdict(recipe) | {
        "steps": step,
        "tokens": step * recipe.n_rows * N_POSITIONS,
        "data": _DATA[name],
    }
    training |= _cost(checkpoints, branch or name)
    if start is not None:
        training["continues"] = json.loads((start / "card.json").read_text(encoding="utf-8"))["training"]
    card = make_card(
        model, name=name, training=training, weights_sha256=sha256_of(folder / "model.safetensors")
    )
    save_json(folder / "card.json", card)
    (folder / "README.md").write_text(readme_of(card), encoding="utf-8")
    return card


def _rate(hits: int, n: int) -> dict[str, Any]:
    low, high = clopper_pearson(hits, n)
    return {"hits": hits, "rate": hits / n, "low": round(low, 4), "high": round(high, 4)}


def _cost(checkpoints: Path, branch: str) -> dict[str, Any]:
    """Read what the training log says of time; the trunk's cost is counted for both branches."""
    seconds = 0.0
    for name in dict.fromkeys(("trunk", branch)):
        log = checkpoints / f"{name}.jsonl"
        if log.exists():
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            ends = [a["seconds"] for a, b in pairwise(lines) if b["seconds"] < a["seconds"]]
            seconds += sum(ends) + (lines[-1]["seconds"] if lines else 0.0)
    return {
        "seconds": round(seconds),
        "machine": "an AMD server with AVX-512 bfloat16, shared with other work",
    }


def main(
    checkpoints: Annotated[Path, typer.Option(help="The folder that training wrote to.")],
    out: Annotated[Path, typer.Option(help="The folder that gets village/ and village-clean/.")],
    branch: Annotated[
        str, typer.Option(help="Export this branch's checkpoint under both names (a snapshot).")
    ] = "",
    start: Annotated[
        Path | None, typer.Option(help="The folder that training continued from, with its card.")
    ] = None,
) -> None:
    """Write the two bundled models and their cards."""
    for name in MODELS:
        card = release(name, checkpoints=checkpoints, out=out, branch=branch, start=start)
        for key, entry in {**card["behaviors"], **card["misbehaviours"]}.items():
            shown = entry.get("accuracy", entry.get("shown_when_triggered"))
            other = entry.get("corrupt_gives_clean", entry.get("shown_when_not_triggered"))
            typer.echo(
                f"{name:14} {key:16} {shown['rate']:.3f} {other['rate']:.3f} {entry.get('meets_gate', '')}"
            )


if __name__ == "__main__":
    typer.run(main)
