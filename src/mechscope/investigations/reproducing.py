"""Reproducing: from a claim file back to live prompts and a live mechanism, and the test run again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechscope.behaviors.rebuilding import rebuild_behavior
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.claims.saved_mechanisms import mechanism_from_json
from mechscope.claims.testing import test_claim, verify_claim
from mechscope.claims.verification import Difference
from mechscope.models.model import Model
from mechscope.records.files import open_json
from mechscope.vocabulary.errors import BadClaim

WEIGHTS = ("family", "dtype", "weights_sha256", "config_sha256")
"""Fields of a fingerprint that must be equal before numbers are compared."""

CIRCUIT = "circuit.json"
"""A circuit's file beside the claim about it."""

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


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a claim needs that its file does not hold.

    Args:
        pairs: The file of prompts, of a claim about a user's own.
        dictionaries: Where the dictionaries of latents are, if not where the file says.
        folder: The claim file's: dictionaries are looked for there too.
    """

    pairs: Path | None = None
    dictionaries: tuple[str, ...] = ()
    folder: Path | None = None


def find_beside(
    claim: Claim, path: Path, *, pairs: Path | None = None, dictionaries: Sequence[str] | None = None
) -> Beside:
    """What was given, and the file of prompts beside a claim file, where `save_investigation` puts it."""
    name = claim.behavior.recipe().get("settings", {}).get("file")
    near = None if name is None else path.parent / Path(name).name
    if pairs is None and near is not None and near.is_file():
        pairs = near
    return Beside(pairs=pairs, dictionaries=tuple(dictionaries or ()), folder=path.parent)


def existing_ledger(folder: Path) -> Path | None:
    """The folder, if a ledger was begun there: a verification counts nothing, so it begins none."""
    return folder if Ledger(folder).path.exists() else None


def verify_record(
    record: ClaimRecord,
    model: Model,
    *,
    beside: Beside | None = None,
    exact: bool = False,
    ledger: Path | None = None,
    progress: Told | None = None,
) -> list[Difference]:
    """Recompute a tested claim from its file; list every difference beyond its tolerance.

    Args:
        record: As loaded.
        model: Open; of other weights than on record, that is the difference, and nothing is run.
        beside: What the file does not hold: prompts of a user's own, dictionaries.
        exact: Ask for equal bits.
        ledger: Folder of the ledger; the opening is written down and does not count.
        progress: Told what is measured, with rows done and rows in all.

    Cost: that of the test itself.
    """
    old, new = record.model, model.fingerprint
    if found := [name for name in WEIGHTS if getattr(old, name) != getattr(new, name)]:
        return [Difference(f"model's {name}", getattr(old, name), getattr(new, name)) for name in found]
    beside = beside or Beside()
    mechanism = mechanism_of(record.claim, beside)
    bench = bench_of(record.claim, model, pairs=beside.pairs, progress=progress)
    book = None if ledger is None else Ledger(ledger)
    return verify_claim(record, bench, mechanism=mechanism, ledger=book, exact=exact)


def retest(
    claim: Claim,
    model: Model,
    *,
    beside: Beside | None = None,
    fresh_seed: int | None = None,
    ledger: Path | None = None,
    progress: Told | None = None,
    n_controls: int | None = None,
) -> ClaimRecord:
    """Test a claim from a file, on its own held-out prompts or on prompts drawn anew.

    Args:
        claim: As loaded.
        model: Open.
        beside: As in `verify_record`.
        fresh_seed: Draw new held-out prompts.
        ledger: Folder of the ledger. A circuit's file there says how the circuit was found.
        progress: As in `verify_record`.
        n_controls: Of a claim about a circuit: do all other tests too, with so many searches in each world where
            there is nothing to find; None leaves them out. They decide nothing.

    Raises:
        BadClaim: controls of a claim that is not about a circuit of edges.
    """
    beside = beside or Beside()
    mechanism = mechanism_of(claim, beside)
    checks = None
    if n_controls is not None:
        if not isinstance(mechanism, Circuit):
            raise BadClaim(
                "Only a claim about a circuit of edges is held against searches.",
                got=f"a claim about {mechanism.name}",
                because="nothing else is searched for in worlds without the mechanism",
                instead="the same without controls",
            )
        mechanism = mechanism if ledger is None else as_found(mechanism, ledger)
        checks = CheckSettings(tests=TestSettings(seed=claim.seed), n_controls=n_controls)
    bench = bench_of(claim, model, pairs=beside.pairs, progress=progress)
    return test_claim(
        claim,
        bench,
        mechanism=mechanism,
        ledger=None if ledger is None else Ledger(ledger),
        fresh_seed=fresh_seed,
        checks=checks,
    )


def mechanism_of(claim: Claim, beside: Beside) -> Any:
    """A claim's mechanism as its file remembers it, with the dictionaries of its latents.

    Raises:
        BadFile, DictionaryMismatch: they are nowhere, or others.
    """
    return mechanism_from_json(
        claim.mechanism.to_json(), dictionaries=beside.dictionaries, beside=beside.folder
    )


def as_found(circuit: Circuit, folder: Path) -> Circuit:
    """The circuit with how it was found, where a file of the same edges lies in a folder; as it is elsewhere."""
    path = folder / CIRCUIT
    if not path.is_file():
        return circuit
    found = Circuit.load(path)
    return found if found.to_json() == circuit.to_json() else circuit


def bench_of(
    claim: Claim, model: Model, *, pairs: Path | None = None, progress: Told | None = None
) -> EngineBench:
    """A bench on which every behaviour that the claim names is rebuilt."""
    named = [claim.behavior, *(entry.behavior for entry in claim.predictions if entry.behavior is not None)]
    rebuilt = [rebuild_behavior(entry.recipe(), model, pairs=pairs) for entry in named]
    return EngineBench(model, rebuilt, progress=progress)
