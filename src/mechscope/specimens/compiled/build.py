"""Write the bundles of all programs: `python -m mechscope.specimens.compiled.build --out DIR`.

Owns: the files of a bundle, and the numbers on its card, measured on the model that was just compiled. Invariant:
each folder gets all files or none; a rebuild has the same bytes of weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from mechscope.records.files import save_json, save_text, sha256_of
from mechscope.specimens.compiled.checking import word_of
from mechscope.specimens.compiled.compiler import Compiled, compile_program
from mechscope.specimens.compiled.programs import PROGRAMS
from mechscope.specimens.compiled.rasp import Program, evaluate
from mechscope.specimens.compiled.record import find_truth
from mechscope.specimens.compiled.symbolic_ioi import (
    VOCABULARY,
    draw_ioi_pairs,
    find_ioi_truth,
    make_symbolic_ioi,
)
from mechscope.specimens.compiled.tokenizer import BOS, make_tokenizer

N_ROWS = 500


def build(out: str | Path, names: Sequence[str] = (*PROGRAMS, "symbolic_ioi")) -> Path:
    """Compile programs and write each one's weights, tokenizer, calibration text and card below the folder `out`.

    Cost: about a minute for all, most of it for measuring the truth; no training and no network.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == "symbolic_ioi":
            network, vocabulary, card = make_symbolic_ioi(), VOCABULARY, make_ioi_card()
            lines = [" ".join(pair.clean) for pair in draw_ioi_pairs(n=12)]
        else:
            compiled = compile_program(PROGRAMS[name])
            network, vocabulary, card = compiled.network, compiled.vocabulary, make_card(compiled)
            lines = _calibration_lines(compiled.program)
        tokenizer = make_tokenizer(vocabulary, n_context=network.config.n_ctx)
        with tempfile.TemporaryDirectory(dir=out) as staging:
            folder = Path(staging)
            network.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            save_text(folder / "calibration.txt", "\n".join(lines) + "\n")
            save_json(folder / "card.json", card | {"sha256": sha256_of(folder / "model.safetensors")})
            target = out / name
            target.mkdir(exist_ok=True)
            for path in sorted(folder.iterdir()):
                path.replace(target / path.name)
                (target / path.name).chmod(0o644)
    return out


def make_ioi_card() -> dict[str, object]:
    """The card of the symbolic indirect-object model."""
    return {
        "name": "compiled/symbolic_ioi",
        "description": "Indirect object identification in one attention layer: one head adds both names, one takes "
        "the repeated name away. Written down; two distractor heads besides.",
        "made_by": "python -m mechscope.specimens.compiled.build --out DIR",
        "seed": "none: every value follows from the script",
        "cost": "seconds on one CPU core",
        "licence": "MIT",
        "truth": find_ioi_truth().to_json(),
        "limits": "Reads names at fixed places: [BOS] name name repeated-name gave.",
    }


def make_card(compiled: Compiled) -> dict[str, object]:
    """What the specimen is, what is true of it, and what was measured."""
    program = compiled.program
    return {
        "name": f"compiled/{program.name}",
        "description": f"{program.description} Compiled from a program; nothing is trained. Every layer has "
        "distractor heads and neurons besides.",
        "made_by": "python -m mechscope.specimens.compiled.build --out DIR",
        "seed": "none: every value follows from the program",
        "cost": "seconds on one CPU core",
        "licence": "MIT",
        "alphabet": list(program.alphabet),
        "length": program.length,
        "is_causal": program.is_causal,
        "subspaces": {name: [part.start, part.stop] for name, part in compiled.subspaces.items()},
        "truth": find_truth(compiled).to_json(),
        "measured": {"sequences": N_ROWS, "positions": N_ROWS * program.length} | measure(compiled, N_ROWS),
        "limits": "Defined on sequences of its alphabet, up to its length. What it says at [BOS] means nothing.",
    }


def measure(compiled: Compiled, n: int) -> dict[str, float]:
    """How far the model is from the program's meaning on drawn sequences, at every position.

    Returns:
        "accuracy" of the most probable token, or for a number the "greatest_error".
    """
    program = compiled.program
    random = Random(f"mechscope compiled measure {program.name}")
    rows = [program.draw_words(random) for _ in range(n)]
    ids = compiled.vocabulary.ids
    with torch.no_grad():
        logits = compiled.network(torch.tensor([[BOS, *(ids[word] for word in row)] for row in rows])).logits[
            :, 1:
        ]
    wanted = [evaluate(program, row) for row in rows]
    if compiled.plan.domains[program.output].is_number:
        truth = torch.tensor([[float(value) for value in row] for row in wanted])
        error = float((logits[..., compiled.vocabulary.answers[0]] - truth).abs().max())
        return {"greatest_error": float(f"{error:.1g}")}
    right = torch.tensor([[ids[word_of(value)] for value in row] for row in wanted])
    return {"accuracy": float((logits.argmax(-1) == right).float().mean())}


def _calibration_lines(program: Program) -> list[str]:
    random = Random(f"mechscope compiled calibration {program.name}")
    return [" ".join(program.draw_words(random)) for _ in range(12)]


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m mechscope.specimens.compiled.build", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write; made if it does not exist")
    folder = build(parser.parse_args().out)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
