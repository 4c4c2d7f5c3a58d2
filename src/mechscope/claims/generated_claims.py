"""Claims about generated text: what can be predicted of it, and how a mechanism's effect on it is measured.

The mechanism's interventions act while the model writes, on prompts, new tokens or both as the metric says; each prompt
is continued once per sample, with and without them from the same stream of random numbers. Of controls 39 suffice.
Refuses what needs a corrupt value of a token that nobody has written yet, and circuits, which are run by edges.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechscope.claims.predictions import Prediction
from mechscope.vocabulary.errors import BadClaim

if TYPE_CHECKING:  # a claim is made without torch
    from mechscope.behaviors.split import Split
    from mechscope.interventions.generated_text import GeneratedText
    from mechscope.models.model import Model
    from mechscope.vocabulary.protocols import Write

KIND = "generated_text"
ROWS_AT_ONCE = 128
"""Continuations that are written in one batch."""

PREDICTED = ("lowers", "raises", "spares")
FROM_PROMPTS = ("corrupt", "resample")
"""Ablation values taken from another prompt, token by token: new tokens have none."""

BY_EDGES = ("circuit", "latent-circuit", "expert-circuit")


def is_of_text(recipe: Mapping[str, Any]) -> bool:
    """True if a behaviour's recipe says that its metric is read on generated text."""
    return recipe.get("metric", {}).get("kind") == KIND


def text_problems(
    mechanism: Mapping[str, Any], predictions: Sequence[Prediction], recipe: Mapping[str, Any]
) -> list[str]:
    """Why a claim can't be tested on generated text; [] if it can, or if it is about none.

    Args:
        mechanism: Its JSON.
        predictions: The claim's.
        recipe: Of the claim's own behaviour.
    """
    problems: list[str] = []
    for prediction in predictions:
        read = recipe if prediction.behavior is None else prediction.behavior.recipe()
        if not is_of_text(read):
            continue
        phase = read["metric"].get("phase", "both")
        if prediction.kind not in PREDICTED:
            problems.append(
                f"{prediction.kind} is not predicted of generated text: what a mechanism does alone needs a corrupt "
                f"value for every new token; predict {', '.join(PREDICTED)}"
            )
        if prediction.how in FROM_PROMPTS and phase != "prompt":
            problems.append(
                f'{prediction.kind} by "{prediction.how}" needs another prompt\'s value for every token, '
                'and new tokens have none: how="mean" or "zero", or GeneratedText(..., phase="prompt")'
            )
        if str(mechanism.get("kind")) in BY_EDGES:
            problems.append(
                "circuits are run edge by edge, on prompts that are known: claim components or sites"
            )
        if any("per_row" in str(where) for where in mechanism.get("places", ())):
            problems.append("own positions for each prompt are not written in batches: use indices or words")
    return list(dict.fromkeys(problems))


def refuse_unless_writable(model: "Model", split: "Split", metric: "GeneratedText") -> None:
    """Refuse before anything is opened: a model that can't write on, or prompts that leave no room to.

    Raises:
        NoNextToken, PromptTooLong, MissingTokenizer
        InputError: token ids that the model has not.
    """
    from mechscope.models.generation import refuse_overflow
    from mechscope.models.limits import refuse_own_predictions

    refuse_own_predictions(
        model.binding.anatomy, "Generation", instead="a model that predicts the next token"
    )
    metric.refuse_without(model.tokenizer)
    metric.refuse_outside(model.d_vocab)
    for batch in (split.clean, split.corrupt):
        refuse_overflow(model, batch, metric.max_new_tokens)


def measure_text(
    model: "Model",
    split: "Split",
    *,
    writes_of: "Callable[[Split], Sequence[Sequence[Write]]]",
    side: str = "clean",
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "mechanism prompt"]:
    """The metric of a split's continuations under each of several lists of interventions.

    Args:
        model: An open model.
        split: Its metric is a `GeneratedText`.
        writes_of: From some of the prompts to one list for each mechanism; values from other prompts fit those rows.
        side: "clean" or "corrupt": which prompts are continued.
        progress: Told continuations done and in all.

    Cost: `max_new_tokens` steps for each mechanism and each batch of `ROWS_AT_ONCE` continuations.
    """
    from mechscope.interventions.generated_text import GeneratedText
    from mechscope.interventions.intervention import Intervention
    from mechscope.interventions.resolve import resolve

    metric = split.metric
    if not isinstance(metric, GeneratedText):
        raise BadClaim(
            "this behaviour is not read on generated text",
            got=metric.kind,
            instead="behavior.metric_as(ms.GeneratedText(...))",
        )
    columns: list[np.ndarray] = []
    n_prompts = max(1, ROWS_AT_ONCE // metric.n_samples)
    for start in range(0, len(split), n_prompts):
        chosen = range(start, min(start + n_prompts, len(split)))
        part = split.select([row for row in chosen for _ in range(metric.n_samples)])
        lists = writes_of(part)
        ready = iter(resolve(model, [write for writes in lists for write in writes]))
        found: list[np.ndarray] = []
        for writes in lists:
            own = [next(ready) for _ in writes]
            acting = [one.only(phase=metric.phase) if isinstance(one, Intervention) else one for one in own]
            new = model.generate(
                part.clean if side == "clean" else part.corrupt,
                interventions=acting,
                max_new_tokens=metric.max_new_tokens,
                temperature=metric.temperature,
                top_p=metric.top_p,
                seed=metric.seed,
                returns="tokens",
            )
            found.append(metric.select(chosen).share(new, model.tokenizer))
            if progress is not None:
                progress(len(columns) * len(lists) + len(found), -(-len(split) // n_prompts) * len(lists))
        columns.append(np.stack(found))
    return np.concatenate(columns, axis=1)
