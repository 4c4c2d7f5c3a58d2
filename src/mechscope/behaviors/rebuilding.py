"""Rebuilding: from the recipe that a claim or a circuit remembers back to the behaviour, prompt for prompt.

Refuses prompts that are not the recorded ones: a number about other prompts would say nothing. Invariant: a rebuilt
behaviour has the data hashes of its recipe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.loading import load
from mechscope.behaviors.own import from_pairs
from mechscope.interventions.generated_text import GeneratedText
from mechscope.models.model import Model
from mechscope.records.files import sha256_of
from mechscope.vocabulary.errors import BadClaim, BadFile, ChecksumMismatch, NotReproduced


def rebuild_behavior(recipe: Mapping[str, Any], model: Model, *, pairs: Path | None = None) -> Behavior:
    """The behaviour that a recipe describes, prompt for prompt.

    Args:
        recipe: As `Behavior.recipe` gave it.
        model: Its tokenizer cuts the prompts; it runs only if the recipe keeps what the model gets right.
        pairs: The file, if the prompts came from one.

    Raises:
        BadClaim: a recipe that no source can follow, such as prompts given as token ids.
        BadFile, ChecksumMismatch: the file is not given, or not the recorded one.
        NotReproduced: the source writes other prompts today.
    """
    behavior = _from_source(recipe, model, pairs)
    if recipe["metric"]["kind"] == GeneratedText.kind:
        behavior = behavior.metric_as(GeneratedText.from_json(recipe["metric"]))
    elif behavior.metric.kind != recipe["metric"]["kind"]:
        behavior = behavior.metric_as(recipe["metric"]["kind"])
    for change in recipe["changes"]:
        behavior = _changed(behavior, change, model)
    rebuilt = behavior.recipe()["splits"]
    other = [
        name
        for name, split in recipe["splits"].items()
        if any(rebuilt.get(name, {}).get(key) != split[key] for key in ("data_sha256", "labels_sha256"))
    ]
    if other:
        raise NotReproduced(
            f'The prompts of "{recipe["name"]}" are not the recorded ones.',
            got=f"{', '.join(other)} of {recipe['source']}, {dict(recipe['settings'])}",
            because="their source, or the tokenizer, changed since the claim was frozen",
            instead="the software on record: mechscope claim show FILE",
        )
    return behavior


def _from_source(recipe: Mapping[str, Any], model: Model, pairs: Path | None) -> Behavior:
    source, settings = recipe["source"], recipe["settings"]
    if source == "file":
        return _from_file(recipe, model, pairs)
    if not {"n", "seed"} <= set(settings):
        raise BadClaim(
            f'The prompts of "{recipe["name"]}" can\'t be made again from the file.',
            got=f"source: {source}",
            because="they were given as a list, and a claim file holds their hash only",
            instead="load them in Python and call claim.test(model, behaviors=[...])",
        )
    return load(recipe["name"], model, n=settings["n"], seed=settings["seed"], source=source)


def _from_file(recipe: Mapping[str, Any], model: Model, pairs: Path | None) -> Behavior:
    settings = recipe["settings"]
    if pairs is None:
        raise BadFile(
            f'The prompts of "{recipe["name"]}" are in a file that was not given.',
            got="no file of pairs",
            because=f"the claim was tested on {settings['file']}, and a claim file holds its hash only",
            instead=f"--pairs {settings['file']}",
        )
    found = sha256_of(pairs)
    if found != settings["file_sha256"]:
        raise ChecksumMismatch(
            f"{pairs.name} is not the file that the claim was tested on.",
            got=f"sha256 {found[:12]}, on record {settings['file_sha256'][:12]}",
            because="one changed prompt would change every number",
            instead=f"{settings['file']} as it was",
        )
    kind = "" if recipe["metric"]["kind"] == GeneratedText.kind else recipe["metric"]["kind"]
    return from_pairs(
        pairs, model, metric=kind, seed=settings["seed"], space=settings["space"], name=recipe["name"]
    )


def _changed(behavior: Behavior, change: Mapping[str, Any], model: Model) -> Behavior:
    match change.get("kind"):
        case "redrawn":
            return behavior.redraw(change["seed"])
        case "only_correct":
            return behavior.only_correct(model)
        case _:
            pass
    raise BadClaim(
        f'A change of the prompts of "{behavior.name}" is not known.',
        got=str(change.get("kind")),
        because="so they can't be made again",
        instead="the version of mechscope on record",
    )
