"""Write the induction specimen's bundle: `python -m mechscope.specimens.induction.build --out DIR`.

Owns: the files of the bundle and the numbers on its card, measured on the model that was just built.
Invariant: the folder gets all files or none, and the weights' checksum is on the card.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from mechscope.models.native import NativeForCausalLM
from mechscope.records.files import save_json, save_text, sha256_of
from mechscope.specimens.induction import truth
from mechscope.specimens.induction.heads import HEADS
from mechscope.specimens.induction.language import FIRST_WORD, WORDS, divide_words, draw_sequences
from mechscope.specimens.induction.tokenizer import make_tokenizer
from mechscope.specimens.induction.weights import ALWAYS, IS_FIRST, SUBSPACES, make_model

N_ROWS, LENGTH, SEED = 100, 40, 0


def build(out: str | Path) -> Path:
    """Build the model and write weights, tokenizer, calibration text and card into the folder `out`.

    Cost: seconds; no training and no network.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = make_model()
    with tempfile.TemporaryDirectory(dir=out.parent) as staging:
        folder = Path(staging)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        save_text(folder / "calibration.txt", _calibration_text())
        save_json(
            folder / "card.json", make_card(model) | {"sha256": sha256_of(folder / "model.safetensors")}
        )
        for path in sorted(folder.iterdir()):
            path.replace(out / path.name)
            (out / path.name).chmod(0o644)
    return out


def make_card(model: NativeForCausalLM) -> dict[str, object]:
    """What the specimen is, what is true of it, and what was measured."""
    return {
        "name": "induction",
        "description": "A two-layer attention-only transformer that continues repeated sequences. Its "
        "weights are written down by a script, not trained; 30 of its 32 heads are distractors.",
        "made_by": "python -m mechscope.specimens.induction.build --out DIR",
        "seed": "none: every value follows from the script",
        "cost": "seconds on one CPU core",
        "licence": "MIT",
        "truth": truth.truth_as_json(),
        "subspaces": {name: [part.start, part.stop] for name, part in SUBSPACES.items()}
        | {"always": [ALWAYS, ALWAYS + 1], "is_first": [IS_FIRST, IS_FIRST + 1]},
        "head_plans": {
            f"{layer}.{head}": {
                "looks": plan.looks,
                "steps": plan.steps,
                "writes": plan.writes,
                "gain": plan.gain,
            }
            for layer, plans in enumerate(HEADS)
            for head, plan in enumerate(plans)
        },
        "splits": {name: list(words) for name, words in divide_words().items()},
        "measured": {"rows": N_ROWS, "words_before_repeat": LENGTH, "seed": SEED} | measure(model),
        "limits": "Knows 64 words. Where a word occurred more than once before, it looks after all copies "
        "equally. Predicts nothing in particular while nothing repeats.",
    }


def measure(model: NativeForCausalLM) -> dict[str, float]:
    """Accuracy and head scores on repeated random sequences; fractions, rounded to four digits.

    Returns:
        "accuracy" and "probability" of the next token over the second half; "prefix_matching": the
        induction head's mean attention to what followed the word's first occurrence;
        "previous_token": the previous-token head's mean attention one position back; "resting": the
        induction head's mean attention to the first token over the first half.
    """
    tokens = draw_sequences(N_ROWS, LENGTH, SEED)
    implementation = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(tokens, output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    previous = out.attentions[0][:, truth.PREVIOUS_TOKEN[1]]
    induction = out.attentions[1][:, truth.INDUCTION[1]]
    repeat = torch.arange(1 + LENGTH, 1 + 2 * LENGTH)
    answers = tokens[:, repeat[1:], None]
    logits = out.logits[:, repeat[:-1]]
    scores = {
        "accuracy": (logits.argmax(-1, keepdim=True) == answers).float().mean(),
        "probability": logits.softmax(-1).gather(-1, answers).mean(),
        "prefix_matching": induction[:, repeat, repeat - LENGTH + 1].mean(),
        "previous_token": previous.diagonal(-1, dim1=1, dim2=2).mean(),
        "resting": induction[:, 1 : 1 + LENGTH, 0].mean(),
    }
    return {name: round(float(score), 4) for name, score in scores.items()}


def _calibration_text() -> str:
    rows = draw_sequences(12, 20, SEED)[:, 1:] - FIRST_WORD
    return "\n".join(" ".join(WORDS[index] for index in row) for row in rows.tolist()) + "\n"


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="python -m mechscope.specimens.induction.build", description=__doc__
    )
    parser.add_argument("--out", required=True, help="folder to write; made if it does not exist")
    folder = build(parser.parse_args().out)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
