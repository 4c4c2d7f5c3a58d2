"""`python -m mechscope.superposition.grokking --out DIR`: train, measure, draw; goes on where it stopped.

Writes the checkpoint, `progress.json` (measures at every checkpoint) and `grokking.html`.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mechscope.figures.labelled import LabelledArray
from mechscope.figures.lines import Lines
from mechscope.figures.prose import Prose
from mechscope.figures.report import Report, Section
from mechscope.models.native import NativeForCausalLM
from mechscope.records.files import open_json, save_json, save_text
from mechscope.records.fingerprint import SoftwareVersions
from mechscope.specimens.grokking import GrokkingSettings, make_table, train_grokking
from mechscope.superposition.modular_addition import Progress, measure_progress

PROGRESS = "progress.json"
LOSSES = ("train_loss", "test_loss", "restricted_loss", "excluded_loss")


def run_grokking(
    settings: GrokkingSettings,
    *,
    out: str | Path,
    checkpoint_every: int = 250,
    device: str = "cpu",
    stop_after: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Progress]:
    """Train with progress measures at every checkpoint, and draw them.

    Args:
        settings: The run.
        out: Folder; a run that was begun there goes on.
        checkpoint_every: Steps between measurements.
        device: Of the training.
        stop_after: Stop at this step, as an interruption would.
        tell: Called with a line a checkpoint.

    Returns:
        The measures, by step; those of a resumed run equal an uninterrupted one's.
    """
    out = Path(out)
    table = make_table(settings.modulus, train_share=settings.train_share, seed=settings.seed).to(device)
    kept = {item.step: item for item in open_progress(out)}

    def look(step: int, model: NativeForCausalLM) -> None:
        kept[step] = measure_progress(model, table, step=step)
        save_json(out / PROGRESS, [asdict(kept[at]) for at in sorted(kept) if at <= step])
        if tell is not None:
            tell(describe(kept[step]))

    train_grokking(
        settings,
        out=out,
        checkpoint_every=checkpoint_every,
        on_checkpoint=look,
        device=device,
        stop_after=stop_after,
    )
    found = [kept[step] for step in sorted(kept)]
    save_text(out / "grokking.html", draw_progress(found, settings).to_html())
    return found


def open_progress(out: str | Path) -> list[Progress]:
    """The measures in a folder; none where no run was begun."""
    path = Path(out) / PROGRESS
    if not path.exists():
        return []
    rows: Any = open_json(path)
    return [Progress(**(row | {"key_frequencies": tuple(row["key_frequencies"])})) for row in rows]


def describe(progress: Progress) -> str:
    """One line for a terminal."""
    keys = " ".join(map(str, progress.key_frequencies)) or "none"
    return (
        f"step {progress.step}: train {progress.train_loss:.3g}, test {progress.test_loss:.3g} nats "
        f"({progress.test_accuracy:.1%} right), restricted {progress.restricted_loss:.3g}, "
        f"excluded {progress.excluded_loss:.3g}, key frequencies {keys}"
    )


def draw_progress(found: list[Progress], settings: GrokkingSettings) -> Report:
    """The four losses and what else moved, over training."""
    steps = [item.step for item in found]
    losses = LabelledArray(
        np.log10([[max(getattr(item, name), 1e-12) for item in found] for name in LOSSES]),
        ("loss", "step"),
        coords={"loss": [name.replace("_", " ") for name in LOSSES], "step": steps},
        unit="log10 nats",
        title="Losses over training",
        conventions={"restricted": "all pairs", "excluded": "training pairs"},
    )
    shares = LabelledArray(
        np.array(
            [
                [i.test_accuracy for i in found],
                [i.sum_share for i in found],
                [i.embedding_gini for i in found],
            ]
        ),
        ("measure", "step"),
        coords={"measure": ("test accuracy", "key share", "embedding Gini"), "step": steps},
        unit="share",
        title="The mechanism forms before the accuracy shows it",
    )
    last = found[-1]
    chance = float(np.log(settings.modulus))
    text = (
        f"Addition modulo {settings.modulus}, trained on {settings.train_share:.0%} of the pairs. {describe(last)}. "
        f"Chance is {chance:.2f} nats."
    )
    report = Report("Grokking", subtitle="Addition modulo p, first by heart, then by trigonometry.")
    report.add(Section("Progress", [Prose(text), Lines(losses), Lines(shares)]))
    report.record = {k: str(v) for k, v in (asdict(settings) | SoftwareVersions.here().model_dump()).items()}
    return report


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder; a run that was begun there goes on.")],
    modulus: Annotated[int, typer.Option(help="p, an odd number.")] = 113,
    steps: Annotated[int, typer.Option(help="Full-batch steps.")] = 25_000,
    weight_decay: Annotated[float, typer.Option(help="0 is the twin that only learns by heart.")] = 1.0,
    train_share: Annotated[float, typer.Option(help="Of all pairs.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of split and weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train a model of modular addition with its progress measures; resumes."""
    settings = GrokkingSettings(
        modulus=modulus, n_steps=steps, weight_decay=weight_decay, train_share=train_share, seed=seed
    )
    run_grokking(settings, out=out, device=device, tell=typer.echo)


if __name__ == "__main__":
    typer.run(main)
