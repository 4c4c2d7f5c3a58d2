"""The application that commands join, and the options that several of them share.

Owns: `app`, `claim_app` and the words of shared options. Imports nothing heavy: `mechscope --help` is quick.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mechscope",
    help="A microscope for neural networks: find the mechanism behind a behaviour, and prove or refute it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
claim_app = typer.Typer(help="Claims that were tested: show, verify, test again.")
app.add_typer(claim_app, name="claim")


class Dtype(StrEnum):
    """In which numbers a model runs."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    float64 = "float64"


class Direction(StrEnum):
    """Which run is patched."""

    denoising = "denoising"
    noising = "noising"


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A bundled name, a folder, or a Hugging Face id.")
]
BehaviorArgument = Annotated[
    str,
    typer.Argument(
        metavar="BEHAVIOR", help="A name from `mechscope behaviors MODEL`, or a CSV or JSONL file of pairs."
    ),
]
ClaimArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A claim file, such as claim.json.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
PairsOption = Annotated[
    Path | None, typer.Option("--pairs", help="A CSV or JSONL file of pairs; BEHAVIOR is then its name.")
]
RecordedPairsOption = Annotated[
    Path | None,
    typer.Option("--pairs", help="The file of pairs that the claim was tested on; found beside FILE."),
]
RecordedDictionaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionary",
        help="Of a claim about latents: where their dictionaries are, if not where FILE says; repeatable.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Names the draw of prompts, controls, resamples.")
]
PairCountOption = Annotated[
    int, typer.Option("--n", min=6, help="Pairs of prompts in all: a third, a sixth and a half.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="In which numbers the model runs.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1.")]
OtherModelOption = Annotated[
    str | None, typer.Option("--model", help="The model, if it is not found by the name on record.")
]
