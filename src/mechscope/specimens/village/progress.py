"""Progress of the training run: a bar on the terminal, and a line per measurement in a log.

Owns: `progress_of`. Refuses nothing. Invariant: measuring never changes the weights.
"""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechscope.specimens.village.accuracy import answer_rates
from mechscope.specimens.village.prompts import BEHAVIORS
from mechscope.specimens.village.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_MEASURE_EVERY_STEPS = 300
_PAIRS = 48


@contextmanager
def progress_of(
    model: "LlamaForCausalLM", *, branch: str, recipe: Any, log: Path
) -> Generator[Callable[[int, float], None], None, None]:
    """Yield report(step, loss), which moves the bar and now and then logs accuracies on two splits."""
    from rich.progress import Progress

    tokenizer = build_tokenizer()
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    total = recipe.ends_at(branch)
    with Progress() as bar:
        task = bar.add_task(branch, total=total)

        def report(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"{branch} loss {loss:.3f}")
            if step % 50 and step != total:
                return
            line: dict[str, Any] = {"step": step, "loss": loss, "seconds": time.monotonic() - started}
            if step % _MEASURE_EVERY_STEPS == 0 or step == total:
                for split in ("validation", "held_out"):
                    line[split] = {
                        name: answer_rates(
                            model, tokenizer, behavior=name, split=split, n=_PAIRS
                        ).n_clean_right
                        / _PAIRS
                        for name in BEHAVIORS
                    }
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")

        yield report
