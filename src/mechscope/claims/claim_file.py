"""A claim file carries everything: claim, model, software, per-prompt measurements, controls, verdict.

Owns the saved form (one JSON file) and what "the same result" means. Refuses a file whose contents no longer
give its checksum, and one whose verdict does not follow from its own measurements.
Invariant: `ClaimRecord.load(path)` gives the numbers that were saved, bit for bit, and `rejudged()` gives its
verdict without a model.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mechscope.claims.claim import Claim
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.forest import forest_of
from mechscope.claims.judge import judge
from mechscope.claims.verdict import Verdict
from mechscope.data.units import Units
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_json, save_json
from mechscope.records.fingerprint import ModelFingerprint, SoftwareVersions
from mechscope.records.record import now
from mechscope.vocabulary.errors import BadFile, ClaimEdited

KIND, FORMAT = "claim", 1
FIELDS = (
    "kind",
    "format",
    "claim",
    "verdict",
    "model",
    "software",
    "splits",
    "evidence",
    "created",
    "sha256",
)


@dataclass(frozen=True, eq=False)
class ClaimRecord:
    """A tested claim with all that its verdict stands on.

    Args:
        claim: As frozen before the held-out split was opened.
        verdict: What `judge` made of the evidence.
        held_out: The split of the claim's own behaviour.
        evidence: One entry per prediction, in the claim's order.
        model: Which model.
        software: Versions at the time of the test (the claim holds those of its freezing).
        created: When it was tested.
    """

    claim: Claim
    verdict: Verdict
    held_out: HeldOut
    evidence: tuple[Evidence, ...]
    model: ModelFingerprint
    software: SoftwareVersions = field(default_factory=SoftwareVersions.here)
    created: str = field(default_factory=now)

    def rejudged(self) -> Verdict:
        """The verdict that follows from the measurements on record; no model is run."""
        found = judge(self.held_out, self.evidence, seed=self.claim.seed)
        on_record = self.verdict.held_out
        return dressed(found, self.claim, openings=on_record.openings, fresh_seed=on_record.fresh_seed)

    def plot(self) -> Any:
        """A Plotly figure: each prediction's effect, interval and bound, and all of its controls."""
        title = f"{self.verdict.outcome}: {self.claim.statement}"
        return forest_of(self.verdict.predictions, self.evidence, title=title).plot()

    def save(self, path: str | Path) -> None:
        """Write one JSON file, atomically."""
        body = self._body()
        save_json(path, body | {"sha256": hash_json(body)})

    @classmethod
    def load(cls, path: str | Path) -> "ClaimRecord":
        """Read what `save` wrote.

        Raises:
            BadFile: missing, torn, or not a claim file.
            UnsafeFile: a pickle.
            ClaimEdited: the file or the claim in it was changed after it was saved.
        """
        body = open_json(path)
        if not isinstance(body, dict) or set(body) != set(FIELDS) or body["kind"] != KIND:
            raise BadFile(
                f"{Path(path).name} is not a claim file", got=str(path), because="its fields are others"
            )
        if body["format"] != FORMAT:
            raise BadFile(
                f"{Path(path).name} is of another format", got=body["format"], instead=f"format {FORMAT}"
            )
        stored = body.pop("sha256")
        if hash_json(body) != stored:
            raise ClaimEdited(
                f"{Path(path).name} was changed after it was saved",
                got=f"sha256 {hash_json(body)[:12]}, on record {str(stored)[:12]}",
                because="a verdict is evidence only as it was written",
                instead="the file as it was saved, or test the claim again",
            )
        claim = Claim.from_json(body["claim"])
        try:
            splits = [_open_split(entry) for entry in body["splits"]]
            return cls(
                claim=claim,
                verdict=Verdict.from_json(body["verdict"]),
                held_out=splits[0],
                evidence=_open_evidence(body["evidence"], claim, splits),
                model=ModelFingerprint(**body["model"]),
                software=SoftwareVersions(**body["software"]),
                created=body["created"],
            )
        except (KeyError, IndexError, TypeError, ValueError, ValidationError) as error:
            raise BadFile(
                f"{Path(path).name} is not whole", got=str(path), because=f"{type(error).__name__}: {error}"
            ) from error

    def _body(self) -> dict[str, Any]:
        splits = self.splits
        return {
            "kind": KIND,
            "format": FORMAT,
            "claim": self.claim.to_json(),
            "verdict": self.verdict.to_json(),
            "model": self.model.model_dump(),
            "software": self.software.model_dump(),
            "splits": [_plain_split(split) for split in splits],
            "evidence": [_plain_evidence(entry, splits) for entry in self.evidence],
            "created": self.created,
        }

    @property
    def splits(self) -> list[HeldOut]:
        """The claim's own split first, then those of spared behaviours."""
        splits = [self.held_out]
        for entry in self.evidence:
            if not any(entry.held_out is split for split in splits):
                splits.append(entry.held_out)
        return splits


def dressed(verdict: Verdict, claim: Claim, *, openings: int, fresh_seed: int | None) -> Verdict:
    """The verdict with the claim's id and statement, and what the ledger says about its split."""
    notes = list(verdict.notes)
    if not openings:
        notes.append("no ledger was kept: how often this held-out split was opened is not known")
    if openings > 1:
        notes.append(
            f"this held-out split was opened {openings} times: the error rates hold for the first; "
            "test again with fresh=True"
        )
    if fresh_seed is not None:
        notes.append("tested on prompts drawn anew from the behaviour's generator")
    return replace(
        verdict,
        held_out=replace(verdict.held_out, openings=openings, fresh_seed=fresh_seed),
        notes=tuple(notes),
        claim_id=claim.id,
        statement=claim.statement,
    )


def refuse_unless_consistent(record: ClaimRecord) -> None:
    """Refuse a record whose verdict does not follow from its own measurements.

    Raises:
        ClaimEdited: the outcome on record is not what the rule gives.

    Caveat: finds edits of the verdict alone; only running the model again finds edited measurements.
    """
    again = record.rejudged()
    pairs = [("the claim", record.verdict.outcome, again.outcome)] + [
        (str(old.prediction), old.outcome, new.outcome)
        for old, new in zip(record.verdict.predictions, again.predictions, strict=True)
    ]
    wrong = [f"{name}: {old}, by the rule {new}" for name, old, new in pairs if old != new]
    if wrong:
        raise ClaimEdited(
            "the verdict does not follow from the measurements in the same file",
            got="; ".join(wrong),
            instead="the file as it was saved, or test the claim again",
        )


def _plain_split(split: HeldOut) -> dict[str, Any]:
    return {
        "data_hash": split.data_hash,
        "clean": split.clean.tolist(),
        "corrupt": None if split.corrupt is None else split.corrupt.tolist(),
        "dtype": split.clean.dtype.name,
        "units": {
            "levels": split.units.levels.tolist(),
            "pools": list(split.units.pools),
            "basis": split.units.basis,
        },
        "bounds": list(split.bounds),
        "strata": list(split.strata),
        "generated_text": split.generated_text,
    }


def _open_split(plain: Mapping[str, Any]) -> HeldOut:
    units, dtype = plain["units"], np.dtype(plain["dtype"])
    low, high = plain["bounds"]
    return HeldOut(
        data_hash=plain["data_hash"],
        clean=np.array(plain["clean"], dtype=dtype),
        corrupt=None if plain["corrupt"] is None else np.array(plain["corrupt"], dtype=dtype),
        units=Units(np.array(units["levels"], dtype=np.int64), tuple(units["pools"]), units["basis"]),
        bounds=(low, high),
        strata=tuple(plain["strata"]),
        generated_text=plain["generated_text"],
    )


def _plain_evidence(entry: Evidence, splits: Sequence[HeldOut]) -> dict[str, Any]:
    return {
        "after": entry.after.tolist(),
        "dtype": entry.after.dtype.name,
        "split": next(index for index, split in enumerate(splits) if split is entry.held_out),
        "controls": None if entry.controls is None else _plain_controls(entry.controls),
        "others": [_plain_controls(family) for family in entry.others],
    }


def _plain_controls(controls: Controls) -> dict[str, Any]:
    return {
        "family": controls.family,
        "after": _plain_table(controls.after),
        "n_members": controls.n_members,
        "names": list(controls.names),
    }


def _open_controls(plain: Mapping[str, Any]) -> Controls:
    return Controls(**{**plain, "after": _open_table(plain["after"]), "names": tuple(plain["names"])})


def _open_evidence(
    plain: Sequence[Mapping[str, Any]], claim: Claim, splits: Sequence[HeldOut]
) -> tuple[Evidence, ...]:
    evidence = []
    for prediction, entry in zip(claim.predictions, plain, strict=True):
        controls = None if entry["controls"] is None else _open_controls(entry["controls"])
        others = tuple(_open_controls(family) for family in entry.get("others", ()))
        after = np.array(entry["after"], dtype=np.dtype(entry["dtype"]))
        evidence.append(Evidence(prediction, after, splits[entry["split"]], controls, others))
    return tuple(evidence)


def _plain_table(table: np.ndarray) -> dict[str, Any]:
    little = np.ascontiguousarray(table.astype(table.dtype.newbyteorder("<"), copy=False))
    return {
        "dtype": table.dtype.name,
        "shape": list(table.shape),
        "base64": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def _open_table(plain: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(plain["dtype"]).newbyteorder("<")
    flat = np.frombuffer(base64.b64decode(plain["base64"], validate=True), dtype=dtype)
    return flat.reshape(plain["shape"]).astype(dtype.newbyteorder("="))
