"""Reproducing: from a claim file back to live prompts and a live mechanism, and the test run again.

Owns: how a behaviour is rebuilt from the recipe that a claim froze. Refuses prompts that are not the recorded ones:
a number about other prompts would say nothing. Invariant: a rebuilt behaviour has the data hashes of its recipe.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mechscope.behaviors import Behavior, from_pairs, load
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.claims.mechanisms import mechanism_from_json
from mechscope.claims.testing import test_claim, verify_claim
from mechscope.claims.verification import Difference
from mechscope.models.model import Model
from mechscope.records.files import open_json, sha256_of
from mechscope.vocabulary.errors import BadClaim, BadFile, ChecksumMismatch, NotReproduced

WEIGHTS = ("family", "dtype", "weights_sha256", "config_sha256")
"""Fields of a fingerprint that must be equal before numbers are compared."""

Told = Callable[[str, int, int], None]


def open_claim(path: Path) -> tuple[Claim, ClaimRecord | None]:
    """Read a claim file: of a tested claim with its record, of one that was only frozen without.

    Raises:
        BadFile, UnsafeFile, ClaimEdited: as `ClaimRecord.load` and `Claim.load`.
    """
    plain = open_json(path)
    if isinstance(plain, dict) and "evidence" in plain:
        record = ClaimRecord.load(path)
        return record.claim, record
    return Claim.load(path), None


def find_pairs(claim: Claim, path: Path) -> Path | None:
    """The file of prompts beside a claim file, where `save_investigation` puts it; None if there is none."""
    name = claim.behavior.recipe().get("settings", {}).get("file")
    beside = None if name is None else path.parent / Path(name).name
    return beside if beside is not None and beside.is_file() else None


def existing_ledger(folder: Path) -> Path | None:
    """The folder, if a ledger was begun there: a verification counts nothing, so it begins none."""
    return folder if Ledger(folder).path.exists() else None


def verify_record(
    record: ClaimRecord,
    model: Model,
    *,
    pairs: Path | None = None,
    exact: bool = False,
    ledger: Path | None = None,
    progress: Told | None = None,
) -> list[Difference]:
    """Recompute a tested claim from its file; list every difference beyond its tolerance.

    Args:
        record: As loaded.
        model: Open; of other weights than on record, that is the difference, and nothing is run.
        pairs: The file of prompts, for a claim about a user's own.
        exact: Ask for equal bits.
        ledger: Folder of the ledger; the opening is written down and does not count.
        progress: Told what is measured, with rows done and rows in all.

    Cost: that of the test itself.
    """
    old, new = record.model, model.fingerprint
    if found := [name for name in WEIGHTS if getattr(old, name) != getattr(new, name)]:
        return [Difference(f"model's {name}", getattr(old, name), getattr(new, name)) for name in found]
    bench = bench_of(record.claim, model, pairs=pairs, progress=progress)
    mechanism = mechanism_from_json(record.claim.mechanism.to_json())
    book = None if ledger is None else Ledger(ledger)
    return verify_claim(record, bench, mechanism=mechanism, ledger=book, exact=exact)


def retest(
    claim: Claim,
    model: Model,
    *,
    pairs: Path | None = None,
    fresh_seed: int | None = None,
    ledger: Path | None = None,
    progress: Told | None = None,
) -> ClaimRecord:
    """Test a claim from a file, on its own held-out prompts or on prompts drawn anew; arguments as above."""
    bench = bench_of(claim, model, pairs=pairs, progress=progress)
    return test_claim(
        claim,
        bench,
        mechanism=mechanism_from_json(claim.mechanism.to_json()),
        ledger=None if ledger is None else Ledger(ledger),
        fresh_seed=fresh_seed,
    )


def bench_of(
    claim: Claim, model: Model, *, pairs: Path | None = None, progress: Told | None = None
) -> EngineBench:
    """A bench on which every behaviour that the claim names is rebuilt."""
    named = [claim.behavior, *(entry.behavior for entry in claim.predictions if entry.behavior is not None)]
    rebuilt = {entry.name: rebuild_behavior(entry.recipe(), model, pairs=pairs) for entry in named}
    return EngineBench(model, rebuilt, progress=progress)


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
    if behavior.metric.kind != recipe["metric"]["kind"]:
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
    kind = recipe["metric"]["kind"]
    return from_pairs(
        pairs, model, metric=kind, seed=settings["seed"], space=settings["space"], name=recipe["name"]
    )


def _changed(behavior: Behavior, change: Mapping[str, Any], model: Model) -> Behavior:
    match change.get("kind"):
        case "redrawn":
            return behavior.redraw(change["seed"])
        case "only_correct":
            return behavior.only_correct(model)
    raise BadClaim(
        f'A change of the prompts of "{behavior.name}" is not known.',
        got=str(change.get("kind")),
        because="so they can't be made again",
        instead="the version of mechscope on record",
    )
