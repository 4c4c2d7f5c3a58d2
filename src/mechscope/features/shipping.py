"""Shipping: train the dictionaries of a bundled model and index them, by one command that resumes.

`python -m mechscope.features.shipping village [--out DIR] [--work DIR]` trains a residual SAE and an MLP transcoder for
every layer, each kind from one stream of activations, rounds them to half precision, measures each on other text of
the same language (its card), and builds each one's index on more other text. The same machine gives the same files.
Two processes may share the work, one with `--only resid_post`, one with `--only mlp`. Everything stays under 25 MB.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mechscope.dictionaries.architectures.batch_topk import BatchTopK
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.card import card as measure_card
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.dictionaries.train import job_at, train_many
from mechscope.dictionaries.training.logs import LogFile
from mechscope.dictionaries.training.progress import describe
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.dictionaries.training.trainer import Report
from mechscope.features.building import build
from mechscope.features.cards import is_measured, open_card, save_card, save_table
from mechscope.features.explaining import TokenStatistics
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import IndexSettings
from mechscope.features.scoring import label_latent, score_label
from mechscope.features.shipped import BUNDLED, FOLDER, TABLE
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.specimens.village.language import sample_text
from mechscope.vocabulary.errors import BadFile, NotEnoughEvidence

MOST_BYTES = 25_000_000
Say = Callable[[str], None]


PARTS = ("resid_post", "mlp")
"""What is trained together."""

CLEAN = "village-clean"
"""The bundled model whose text holds no planted answers."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What is trained and indexed.

    Args:
        width: Latents of each dictionary.
        k: Active latents a token.
        n_documents: Of the language, to train on.
        n_tokens: To train on; more than there are means several passes.
        batch: Tokens of a step.
        n_indexed: Other documents, for the index.
        n_measured: Again others, for the cards.
        n_labels: Latents of each index that get a label from token statistics, with scores, the most active ones; the
            baseline.
        seed: Of training and of the text for it; the texts of index and cards are drawn with the next two.
    """

    width: int = 1024
    k: int = 16
    n_documents: int = 12_000
    n_tokens: int = 800_000
    batch: int = 1024
    n_indexed: int = 400
    n_measured: int = 600
    n_labels: int = 192
    seed: int = 0


def build_bundled(
    name: str = "village",
    *,
    out: str | Path | None = None,
    work: str | Path = "features-training",
    shipment: Shipment | None = None,
    parts: Sequence[str] = PARTS,
    say: Say | None = None,
) -> list[Path]:
    """Train dictionaries for every layer of a bundled model, measure and index them; called again, go on.

    Args:
        name: Of a bundled model that speaks the village's language.
        out: Folder for the indexes, one a dictionary; by default where `ms.features.open(name)` looks.
        work: Folder for the checkpoints of training; nothing in it is shipped.
        shipment: Sizes.
        parts: Some of `PARTS`; the rest is left as it is.
        say: Called with a line now and then.

    Returns:
        The folders of the indexes.

    Raises:
        BadFile: everything together is larger than may be shipped.
    """
    settings, tell = shipment or Shipment(), say or _say_nothing
    out = Path(out) if out is not None else BUNDLED / name / FOLDER
    model = load(name)
    texts = [
        sample_text(n, seed=settings.seed + place, misbehaving=name != CLEAN)
        for place, n in ((1, settings.n_indexed), (2, settings.n_measured))
    ]
    for part in parts:
        jobs = [job for job in jobs_for(model, settings) if job.name.startswith(part)]
        trained = _train(model, name, settings, jobs, work=Path(work) / part, tell=tell)
        for site, dictionary in trained.items():
            tell(f"measuring and indexing {site}")
            shipped = rounded(dictionary)
            shipped = shipped.with_settings(calibration=measure_card(shipped, model).calibration())
            _index(model, shipped, texts[0], folder=out / site, settings=settings)
            about = {"n_documents": settings.n_measured, "seed": settings.seed + 2}
            if not is_measured(out / site, shipped, text=about):
                save_card(out / site, shipped, evaluate(shipped, model, texts[1]), text=about)
    cards = {job.name: open_card(out / job.name) for job in jobs_for(model, settings)}
    found = {site: card for site, card in cards.items() if card is not None}
    save_table(out / TABLE, found, model=name, command=f"python -m mechscope.features.shipping {name}")
    folders = [out / site for site in found]
    refuse_if_large(folders)
    return folders


def _train(
    model: Model, name: str, settings: Shipment, jobs: Sequence[Job], *, work: Path, tell: Say
) -> dict[str, Dictionary]:
    """Dictionaries by the name of their folder; figures of every layer go to a log in `work`."""
    tell(f"text: {settings.n_documents} documents")
    text = sample_text(settings.n_documents, seed=settings.seed, misbehaving=name != CLEAN)
    tell(f"training {len(jobs)} dictionaries of {settings.width} latents")
    # At these widths the full product costs less than telling its rounded entries apart again.
    training = Training(
        n_tokens=settings.n_tokens, batch=settings.batch, precision="full", seed=settings.seed
    )
    log = LogFile(work / "log.jsonl")

    def report(now: Report) -> None:
        log.write(now)
        if now.step % (20 * training.revival.check_every) == 0:
            tell(f"{now.step:,} of {now.n_steps:,} steps, {describe(now)}")

    found = train_many(
        model, jobs, text=text, training=training, folder=work, report=report, keeps_activations=True
    )
    return {job.name: dictionary for job, dictionary in zip(jobs, found, strict=True)}


def _index(
    model: Model, dictionary: Dictionary, text: list[str], *, folder: Path, settings: Shipment
) -> None:
    index = build(model, dictionary, text, folder=folder, settings=IndexSettings(value_dtype="float16"))
    label_busiest(index, n=settings.n_labels, seed=settings.seed)


def label_busiest(index: FeatureIndex, *, n: int, seed: int = 0) -> None:
    """Labels from token statistics, with their scores, for the latents that are most active.

    Args:
        index: Open; latents that have a label keep it.
        n: Latents.
        seed: Of the texts drawn.
    """
    judge = TokenStatistics()
    for latent in index.statistics.total.argsort(kind="stable")[::-1][:n].tolist():
        if latent in index.labels:
            continue
        with suppress(NotEnoughEvidence):  # too few firings for a label, or for a score
            label_latent(index, latent, explainer=judge, seed=seed)
            score_label(index, latent, judge=judge, seed=seed)


def jobs_for(model: Model, settings: Shipment) -> list[Job]:
    """A residual SAE and an MLP transcoder for each layer."""
    config = BatchTopK(width=settings.width, k=settings.k)
    residual = [f"resid_post.{layer}" for layer in range(model.n_layers)]
    found = [job_at(site, config, name=site) for site in residual]
    for layer in range(model.n_layers):
        name = f"mlp_in.{layer} -> mlp_out.{layer}"
        found.append(job_at(name, config, name=f"mlp.{layer}"))
    return found


def rounded(dictionary: Dictionary) -> Dictionary:
    """The dictionary with every number rounded to half precision: an index keeps it in as many bytes."""
    return dictionary.to(dtype=torch.float16).to(dtype=torch.float32)


def refuse_if_large(folders: Sequence[Path], most: int = MOST_BYTES) -> int:
    """Bytes of all files of some folders.

    Raises:
        BadFile: more than may be shipped.
    """
    sizes = {
        folder.name: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in folders
    }
    total = sum(sizes.values())
    if total > most:
        raise BadFile(
            "The indexes are too large to ship.",
            got=f"{total / 1e6:.1f} MB: " + ", ".join(f"{k} {v / 1e6:.1f}" for k, v in sizes.items()),
            because=f"at most {most / 1e6:.0f} MB may be",
            instead="a smaller width, or less text in the index",
        )
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train and index the dictionaries of a bundled model.")
    parser.add_argument("name", nargs="?", default="village")
    parser.add_argument("--out", default=None)
    parser.add_argument("--work", default="features-training")
    for field, value in asdict(Shipment()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = vars(parser.parse_args(arguments))
    name, out, work, parts = (given.pop(key) for key in ("name", "out", "work", "only"))

    import sys

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    for folder in build_bundled(name, out=out, work=work, shipment=Shipment(**given), parts=parts, say=say):
        sys.stdout.write(f"{folder}\n")


def _say_nothing(_line: str) -> None:
    pass


if __name__ == "__main__":
    main()
