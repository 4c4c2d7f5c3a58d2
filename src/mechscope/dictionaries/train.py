"""Train: dictionaries from a model and a text, or from a store, in memory or in a folder that resumes.

The one verb behind `ms.dictionaries.train`. Everything that the weights depend on is in settings that are saved
with the dictionary; what is on the screen is not.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechscope.dictionaries.architectures.base import Architecture
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Source
from mechscope.dictionaries.training.logs import LogFile
from mechscope.dictionaries.training.progress import showing_progress
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.dictionaries.training.trainer import Report, Reporter, Trainer
from mechscope.engine.harvest.blocks import Blocks, KeptBlocks, ModelBlocks
from mechscope.engine.harvest.corpus import Text, corpus_of
from mechscope.engine.harvest.store import ActivationStore, rows_for
from mechscope.models.inputs import Bos
from mechscope.models.model import Model
from mechscope.records.version import __version__
from mechscope.vocabulary.errors import DictionaryError, DictionaryMismatch
from mechscope.vocabulary.sites import Site

_ROWS_AT_ONCE = 32


def train(
    model: Model,
    *,
    site: str | Sequence[str],
    text: Text,
    config: Architecture,
    training: Training | None = None,
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> Dictionary:
    """Train one dictionary on what a site carries over a text.

    Args:
        model: An open model; left as found.
        site: "resid_post.2" (an SAE), "mlp_in.2 -> mlp_out.2" (a transcoder), or several sites (a crosscoder).
        text: A list of texts, a path, token ids, or a `TokenCorpus`.
        config: Architecture and width: `ms.dictionaries.TopK(width=4096, k=32)`.
        training: Tokens, batch, rate, revival, ...; one pass through the text by default.
        folder: Keeps checkpoints, the log and the dictionary; called again, it goes on or returns what is done.
        report: Called with figures every few steps; by default nothing is shown.

    Returns:
        The dictionary, its normalisation unfolded.

    Raises:
        PointUnavailable: the model does not form such a site.
        EmptyPrompt: the text is shorter than a batch.
        NonFiniteActivations: the model or the loss gave NaN.

    Cost: the text through the model up to the site, and one step for each batch.
    """
    job = job_at(site, config)
    return train_many(model, [job], text=text, training=training, folder=folder, report=report)[0]


def train_many(
    model: Model,
    jobs: Sequence[Job],
    *,
    text: Text,
    training: Training | None = None,
    folder: str | Path | None = None,
    report: Reporter | None = None,
    keeps_activations: bool = False,
) -> list[Dictionary]:
    """Train several dictionaries, at several sites, from one stream of activations; see `train`.

    Args:
        model: An open model.
        jobs: One for each dictionary.
        text: As in `train`.
        training: As in `train`.
        folder: As in `train`.
        report: As in `train`.
        keeps_activations: Hold all of the text's activations in memory, so that later passes over a short text need
            no forward pass. Changes no result.
    """
    training = training or Training()
    jobs = [_in_model(job, model) for job in jobs]
    sites = tuple(dict.fromkeys(site for job in jobs for site in job.sites))
    corpus = corpus_of(model, text).shuffled(training.seed)
    blocks = ModelBlocks(model=model, corpus=corpus, sites=sites, rows_at_once=_ROWS_AT_ONCE)
    width_bytes = sum(_width(shape) for shape in blocks.shapes.values()) * 4
    blocks = replace(blocks, rows_per_block=max(_ROWS_AT_ONCE, rows_for(corpus.lengths, width_bytes)))
    source = source_of(model, data_sha256=corpus.data_sha256, has_bos=corpus.has_bos, bos=corpus.bos)
    is_elsewhere = model.device.type != "cpu"
    stream = KeptBlocks(source=blocks) if keeps_activations else blocks
    trainer = Trainer(
        stream, jobs, training=training, source=source, reads_ahead=is_elsewhere, device=model.device
    )
    return run_trainer(trainer, folder, report)


def train_from(
    store: ActivationStore | Blocks,
    jobs: Sequence[Job],
    *,
    training: Training | None = None,
    folder: str | Path | None = None,
    report: Reporter | None = None,
    device: str = "cpu",
) -> list[Dictionary]:
    """Train dictionaries from activations on disk or in memory; a thread reads ahead of the trainer.

    Args:
        store: What `save_activations` wrote, or anything that gives blocks.
        jobs: One for each dictionary.
        training: As in `train`.
        folder: As in `train`.
        report: As in `train`.
        device: Where dictionaries are trained.

    Raises:
        ChecksumMismatch: a shard was shortened or altered.
    """
    is_store = isinstance(store, ActivationStore)
    source = _source_of_store(store) if isinstance(store, ActivationStore) else Source(made_by=_MADE_BY)
    trainer = Trainer(
        store, jobs, training=training or Training(), source=source, reads_ahead=is_store, device=device
    )
    return run_trainer(trainer, folder, report)


def train_to_folder(
    model: Model,
    jobs: Sequence[Job],
    *,
    text: Text,
    folder: str | Path,
    training: Training | None = None,
    shows_progress: bool = True,
    report: Reporter | None = None,
) -> list[Dictionary]:
    """Train into a folder with a progress bar and logs; called again, it resumes. What a command line calls.

    Args:
        model: An open model.
        jobs: One for each dictionary.
        text: As in `train`.
        folder: Gets `checkpoint.safetensors`, `log.jsonl`, and one folder for each dictionary.
        training: As in `train`.
        shows_progress: A bar with tokens/s, L0, FVU, dead latents and the time left.
        report: Called as well, as in `train`: `to_tensorboard(folder)`, or for Weights & Biases and trackio
            `lambda now: wandb.log(flat_figures(now), step=now.step)`.

    Raises:
        BadFile: the folder belongs to another run.
        DiskFull: no room for a checkpoint or the log; the last checkpoint stands.
    """
    log = LogFile(Path(folder) / "log.jsonl")
    bar = showing_progress() if shows_progress else nullcontext(_say_nothing)
    with bar as show:
        told = (log.write, show, report or _say_nothing)

        def tell(now: Report) -> None:
            for one in told:
                one(now)

        return train_many(model, jobs, text=text, training=training, folder=folder, report=tell)


def job_at(site: str | Site | Sequence[str | Site], config: Architecture, **more: Any) -> Job:
    """A job from "a", "a -> b", or several sites read and written together."""
    if isinstance(site, str) and "->" in site:
        reads, writes = (part.strip() for part in site.split("->"))
        return Job(reads=(Site.parse(reads),), writes=(Site.parse(writes),), config=config, **more)
    names = [site] if isinstance(site, str | Site) else list(site)
    if not names:
        raise DictionaryError(
            "A dictionary reads at least one site.", got="no site", instead='site="resid_post.2"'
        )
    return Job(reads=tuple(Site.parse(name) for name in names), config=config, **more)


def source_of(
    model: Model, *, data_sha256: str = "", has_bos: bool | None = None, bos: Bos | None = None
) -> Source:
    """What a dictionary says about the model and the text that it was trained on."""
    here = model.fingerprint
    return Source(
        model=here.name,
        revision=here.revision,
        weights_sha256=here.weights_sha256,
        dtype=here.dtype,
        tokenizer_sha256=model.tokenizer_sha256,
        bos=has_bos,
        data_sha256=data_sha256,
        made_by=_MADE_BY,
        notes=_notes_of(bos),
    )


_MADE_BY = f"mechscope {__version__}"


def _source_of_store(store: ActivationStore) -> Source:
    manifest = store.manifest
    return Source(
        model=manifest.model["name"],
        revision=manifest.model["revision"],
        weights_sha256=manifest.model["weights_sha256"],
        dtype=manifest.model["dtype"],
        tokenizer_sha256=manifest.tokenizer_sha256,
        bos=manifest.has_bos,
        data_sha256=manifest.data_sha256,
        made_by=_MADE_BY,
        notes=_notes_of(manifest.bos),
    )


def _notes_of(bos: Bos | None) -> dict[str, str]:
    return {} if bos is None else {"bos": bos}


def run_trainer(trainer: Trainer, folder: str | Path | None, report: Reporter | None) -> list[Dictionary]:
    """The trainer's dictionaries, in memory, or kept in a folder where it goes on."""
    if folder is None:
        return trainer.run(report=report)
    folder = Path(folder)
    names = [_folder_of(job, i, len(trainer.jobs)) for i, job in enumerate(trainer.jobs)]
    found = trainer.run(folder=folder, report=report)
    for name, dictionary in zip(names, found, strict=True):
        dictionary.save(folder / name)
    return found


def _folder_of(job: Job, index: int, n_jobs: int) -> str:
    if job.name:
        return job.name
    return "dictionary" if n_jobs == 1 else f"dictionary-{index}"


def _in_model(job: Job, model: Model) -> Job:
    """The job with sites as the model names them: negative layers and foreign names resolved."""
    reads = tuple(model.binding.site(site) for site in job.reads)
    writes = None if job.writes is None else tuple(model.binding.site(site) for site in job.writes)
    refuse_attention_maps((*reads, *(writes or ())))
    return replace(job, reads=reads, writes=writes)


def refuse_attention_maps(sites: Sequence[Site]) -> None:
    """Refuse sites whose rows are as long as the prompt.

    Raises:
        DictionaryMismatch
    """
    maps = [str(site) for site in sites if site.row.is_attention_map]
    if maps:
        raise DictionaryMismatch(
            "Attention maps have no width of their own.",
            got=", ".join(maps),
            because="a row is as long as the prompt",
            instead="a site of the residual stream, or z",
        )


def _width(shape: tuple[int, ...]) -> int:
    width = 1
    for size in shape:
        width *= size
    return width


def _say_nothing(_now: Report) -> None:
    pass
