"""`mechscope train-dictionary`: dictionaries at some sites of a model over a text, in a folder that resumes."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechscope.cli.application import (
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    app,
)
from mechscope.cli.opening import open_model
from mechscope.cli.terminal import emit, say, table
from mechscope.vocabulary.errors import BadCommand

if TYPE_CHECKING:
    from mechscope.dictionaries.architectures.base import Architecture


class Kind(StrEnum):
    """Architectures that the command trains; Python offers all of them with all their settings."""

    topk = "topk"
    batchtopk = "batchtopk"
    matryoshka = "matryoshka"
    jumprelu = "jumprelu"
    relu = "relu"


@app.command("train-dictionary")
def train_dictionary(
    model: ModelArgument,
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file, one document a line.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; a run that was begun there goes on.")],
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site", help='"resid_post.2", or "mlp_in.2 -> mlp_out.2" for a transcoder; repeatable.'
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="Architecture.")] = Kind.topk,
    width: Annotated[int, typer.Option("--width", min=2, help="Latents of each dictionary.")] = 4096,
    k: Annotated[
        float | None,
        typer.Option("--k", help="Active latents a token that are aimed at; 32 where kind takes it."),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(
            "--tokens",
            metavar="N[,BATCH]",
            help="To train on, 0 for one pass through TEXT; and of a step, 4096 unless you say.",
        ),
    ] = "0",
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train one dictionary for each site from one stream of activations; called again, go on."""
    if not site:
        raise BadCommand(
            "Where should dictionaries be trained?", got="no --site", instead="--site resid_post.2"
        )
    opened = open_model(model, dtype=dtype.value, device=device)
    from mechscope.dictionaries.train import job_at, train_to_folder
    from mechscope.dictionaries.training.spec import Training

    config = config_of(kind, width, k)
    jobs = [job_at(one, config, name=name_of(one)) for one in site]
    n_tokens, batch = read_tokens(tokens)
    training = Training(n_tokens=n_tokens or None, batch=batch, seed=seed)
    trained = train_to_folder(
        opened, jobs, text=text, folder=out, training=training, shows_progress=not as_json
    )
    rows: list[dict[str, Any]] = [
        {
            "site": one,
            "dictionary": str(out / name_of(one)),
            "l0": dictionary.settings.calibration.l0,
            "fvu": dictionary.settings.calibration.fvu,
            "dead": dictionary.settings.calibration.dead,
        }
        for one, dictionary in zip(site, trained, strict=True)
    ]
    if as_json:
        emit({"dictionaries": rows})
        return
    table(tuple(rows[0]), [[_shown(value) for value in row.values()] for row in rows])
    say(f"\n{out}")


def config_of(kind: Kind, width: int, k: float | None) -> "Architecture":
    """The architecture with its usual settings, aimed at k active latents a token.

    Raises:
        BadCommand: a k that this architecture does not take.
    """
    from mechscope import dictionaries

    _refuse_other_k(kind, k)
    aim = 32.0 if k is None else k
    match kind:
        case Kind.topk:
            return dictionaries.TopK(width=width, k=int(aim))
        case Kind.batchtopk:
            return dictionaries.BatchTopK(width=width, k=aim)
        case Kind.matryoshka:
            return dictionaries.Matryoshka(width=width, k=aim)
        case Kind.jumprelu:
            return dictionaries.JumpReLU(width=width, l0=aim)
        case Kind.relu:
            return dictionaries.ReLU(width=width)


def read_tokens(text: str) -> tuple[int, int]:
    """Tokens to train on, and tokens of a step.

    >>> read_tokens("0"), read_tokens("800000,1024")
    ((0, 4096), (800000, 1024))

    Raises:
        BadCommand: no such numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or int(parts[-1] or 0) < len(parts) - 1:
        raise BadCommand(
            "Tokens are a number, or two with a comma between.",
            got=f"--tokens {text}",
            because="the first counts tokens to train on, 0 for one pass, the second those of a step",
            instead="--tokens 0, --tokens 800000 or --tokens 0,1024",
        )
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 4096


def _refuse_other_k(kind: Kind, k: float | None) -> None:
    if k is None:
        return
    because = ""
    if kind == Kind.relu:
        because = (
            "how many latents of a ReLU are active comes of its penalty, which Python sets: ReLU(l1=...)"
        )
    elif k <= 0:
        because = "at least some latents are active"
    elif kind == Kind.topk and k != int(k):
        because = "a TopK takes as many latents of every token; the others reach k on average"
    if because:
        raise BadCommand(
            f"--kind {kind.value} takes no --k {k:g}.",
            got=f"--kind {kind.value} --k {k:g}",
            because=because,
            instead=f"--kind batchtopk --k {k if k > 0 else 32:g}, or no --k",
        )


def name_of(site: str) -> str:
    """The folder of a site's dictionary: "mlp_in.2 -> mlp_out.2" is mlp_in.2-mlp_out.2."""
    return "-".join(part.strip() for part in site.split("->"))


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
