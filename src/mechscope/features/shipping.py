"""Shipping: train the dictionaries of a bundled model and index them, by one command that resumes.

`python -m mechscope.features.shipping village [--out DIR] [--work DIR]` trains a residual SAE and an MLP transcoder for
every layer from one stream of activations, rounds them to half precision, and builds each one's index
on other text of the same language. The same machine gives the same files. Everything stays under 25 MB.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mechscope.dictionaries.architectures.batch_topk import BatchTopK
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.train import job_at, train_many, train_to_folder
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.features.building import build
from mechscope.features.explaining import TokenStatistics
from mechscope.features.manifest import IndexSettings
from mechscope.features.scoring import label_latent
from mechscope.features.shipped import BUNDLED, FOLDER
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.specimens.village.language import calibration_text
from mechscope.vocabulary.errors import BadFile

MOST_BYTES = 25_000_000
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What is trained and indexed.

    Args:
        width: Latents of each dictionary.
        k: Active latents a token.
        n_documents: Of the language, to train on.
        n_tokens: To train on; more than there are means several passes.
        n_indexed: Other documents, for the index.
        n_labels: Latents of each index that get a label from token statistics, the most active ones; the baseline.
        seed: Of training; text for the index is drawn with the next.
    """

    width: int = 1024
    k: int = 16
    n_documents: int = 60_000
    n_tokens: int = 8_000_000
    n_indexed: int = 400
    n_labels: int = 64
    seed: int = 0


def build_bundled(
    name: str = "village",
    *,
    out: str | Path | None = None,
    work: str | Path = "features-training",
    shipment: Shipment | None = None,
    say: Say | None = None,
) -> list[Path]:
    """Train dictionaries for every layer of a bundled model and index them; called again, go on.

    Args:
        name: Of a bundled model that speaks the village's language.
        out: Folder for the indexes, one a dictionary; by default where `ms.features.open(name)` looks.
        work: Folder for the checkpoints of training; nothing in it is shipped.
        shipment: Sizes.
        say: Called with a line now and then.

    Returns:
        The folders of the indexes.

    Raises:
        BadFile: everything together is larger than may be shipped.
    """
    settings, tell = shipment or Shipment(), say or _say_nothing
    out = Path(out) if out is not None else BUNDLED / name / FOLDER
    model = load(name)
    tell(f"text: {settings.n_documents} documents")
    text = calibration_text(settings.n_documents, seed=settings.seed)
    tell(f"training {2 * model.n_layers} dictionaries of {settings.width} latents")
    jobs = jobs_for(model, settings)
    training = Training(n_tokens=settings.n_tokens, seed=settings.seed)
    trained = (train_to_folder if say else train_many)(
        model, jobs, text=text, folder=Path(work), training=training
    )
    indexed = calibration_text(settings.n_indexed, seed=settings.seed + 1)
    folders: list[Path] = []
    for job, dictionary in zip(jobs, trained, strict=True):
        folder = out / job.name
        tell(f"index: {job.name}")
        index = build(
            model, rounded(dictionary), indexed, folder=folder, settings=IndexSettings(value_dtype="float16")
        )
        busiest = index.statistics.total.argsort(kind="stable")[::-1][: settings.n_labels]
        for latent in busiest.tolist():
            if index.statistics.fires[latent] and latent not in index.labels:
                label_latent(index, latent, explainer=TokenStatistics(), seed=settings.seed)
        folders.append(folder)
    refuse_if_large(folders)
    return folders


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
    given = vars(parser.parse_args(arguments))
    name, out, work = (given.pop(key) for key in ("name", "out", "work"))

    import sys

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    for folder in build_bundled(name, out=out, work=work, shipment=Shipment(**given), say=say):
        sys.stdout.write(f"{folder}\n")


def _say_nothing(_line: str) -> None:
    pass


if __name__ == "__main__":
    main()
