"""A claim: a statement with predictions, frozen before its held-out split is opened.

Owns the claim's canonical form and its id, the hash of it: statement, behaviour and data recipe, mechanism,
predictions with x, y and z, control family, seed, software. Refuses what could not be contradicted, and a
claim file whose contents no longer give its id.
Invariant: an edit makes another claim; equal contents give equal ids on every machine.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mechscope.claims.controls import RIVALS, STRICTEST
from mechscope.claims.generated_claims import text_problems
from mechscope.claims.predictions import Behavior, Prediction, RecordedBehavior, recorded
from mechscope.records.canonical import canonical_json, hash_json, to_plain
from mechscope.records.files import open_json, save_json
from mechscope.records.fingerprint import SoftwareVersions
from mechscope.vocabulary.errors import BadClaim, BadFile, ClaimEdited

if TYPE_CHECKING:
    import mechscope.claims.claim_file
    import mechscope.claims.verdict
    from mechscope.circuits.circuit import Circuit
    from mechscope.circuits.parts.circuit import PartCircuit
    from mechscope.circuits.statistics.checks import CheckSettings
    from mechscope.dictionaries.dictionary import Dictionary

FORMAT = 1
FIELDS = ("statement", "behavior", "mechanism", "predictions", "controls", "seed", "software", "format")


@runtime_checkable
class NamedMechanism(Protocol):
    """The part of the Mechanism protocol that freezing needs; testing needs the rest."""

    @property
    def name(self) -> str:
        """Short text for reports."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything that identifies the mechanism."""
        ...


@dataclass(frozen=True)
class RecordedMechanism:
    """A mechanism as a claim file remembers it; whoever knows its `kind` can build it again."""

    name: str
    canonical: str

    def to_json(self) -> dict[str, Any]:
        """What the mechanism's own `to_json` gave when the claim was frozen."""
        return json.loads(self.canonical)


@dataclass(frozen=True, eq=False)
class Claim:
    """What is believed of a mechanism, precisely enough to be wrong.

    Args:
        statement: One sentence.
        behavior: Whose held-out prompts decide: a name and a data recipe.
        mechanism: What is ablated, restored or steered.
        predictions: From `lowers`, `recovers`, `raises`, `spares`; at least one that is not sparing.
        controls: Name of the confirmatory control family, see `FAMILIES`; its p decides, others are shown. By
            default the strictest that can gate in the model that it is tested on.
        seed: Of resamples and controls.
        software: Versions; this process's unless the claim comes from a file.

    Raises:
        BadClaim: with everything that is wrong at once.
        NotSerializable: a mechanism or recipe that is no JSON, such as a function.
    """

    statement: str
    behavior: Behavior
    mechanism: NamedMechanism
    predictions: Sequence[Prediction]
    controls: str = STRICTEST
    seed: int = 0
    software: Mapping[str, str | None] = field(default_factory=lambda: SoftwareVersions.here().model_dump())
    canonical: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise BadClaim(
                "a claim that can't be tested",
                got=repr(self.statement),
                because="; ".join(problems),
                instead='Claim("...", behavior=ioi, mechanism=..., predictions=[lowers(1)], controls="...")',
            )
        object.__setattr__(self, "predictions", tuple(self.predictions))
        behavior = recorded(self.behavior)
        document = {
            "statement": self.statement,
            "behavior": {"name": behavior.name, "recipe": behavior.recipe()},
            "mechanism": {"name": self.mechanism.name, "json": to_plain(self.mechanism.to_json())},
            "predictions": [prediction.to_json() for prediction in self.predictions],
            "controls": self.controls,
            "seed": self.seed,
            "software": dict(self.software),
            "format": FORMAT,
        }
        object.__setattr__(self, "canonical", canonical_json(document))

    @property
    def id(self) -> str:
        """The claim's hash, 64 hexadecimal digits; what the verdict and the ledger refer to."""
        return hash_json(json.loads(self.canonical))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Claim) and other.canonical == self.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __str__(self) -> str:
        lines = [
            f"{self.statement}",
            f"  behaviour   {self.behavior.name}",
            f"  mechanism   {self.mechanism.name}",
        ]
        lines += [f"  prediction  {prediction}" for prediction in self.predictions]
        return "\n".join([*lines, f"  controls    {self.controls}", f"  id          {self.id[:12]}"])

    def test(
        self,
        model: Any,
        *,
        seed: int = 0,
        fresh: bool = False,
        ledger: "str | Path | None" = None,
        behaviors: Sequence[Any] = (),
        checks: "bool | CheckSettings" = True,
    ) -> "mechscope.claims.verdict.Verdict":
        """Open the held-out split, measure, and judge: supported, refuted or inconclusive.

        Args:
            model: An open model.
            seed: Of the prompts drawn with `fresh`; resamples and controls take the claim's own seed.
            fresh: Draw new held-out prompts from the behaviour's generator.
            ledger: Folder of the ledger that counts openings of held-out splits; None keeps no count.
            behaviors: Other behaviours that predictions name ("spares").
            checks: Of a claim about a circuit: whether the tests and controls that decide nothing are done too, and
                with which settings; they stand in `verdict.checks`.

        Cost: one packed experiment per prediction and per control, and for circuits that of the checks; `examine`
            also keeps the measurements.
        """
        return self.examine(
            model, seed=seed, fresh=fresh, ledger=ledger, behaviors=behaviors, checks=checks
        ).verdict

    def examine(
        self,
        model: Any,
        *,
        seed: int = 0,
        fresh: bool = False,
        ledger: "str | Path | None" = None,
        behaviors: Sequence[Any] = (),
        checks: "bool | CheckSettings" = True,
        progress: "Callable[[str, int, int], None] | None" = None,
    ) -> "mechscope.claims.claim_file.ClaimRecord":
        """As `test`, and return everything that a claim file carries."""
        from mechscope.circuits.statistics.checks import CheckSettings
        from mechscope.claims.bench import EngineBench
        from mechscope.claims.ledger import Ledger
        from mechscope.claims.testing import test_claim

        bench = EngineBench(model, behaviors, progress=progress)
        book = None if ledger is None else Ledger(Path(ledger))
        wanted = (CheckSettings() if checks else None) if isinstance(checks, bool) else checks
        return test_claim(self, bench, ledger=book, fresh_seed=seed if fresh else None, checks=wanted)

    @classmethod
    def about(
        cls,
        circuit: "Circuit | PartCircuit",
        *,
        dictionaries: "Sequence[Dictionary | str | Path] | None" = None,
        behavior: Behavior | None = None,
        predictions: Sequence[Prediction] | None = None,
        statement: str = "",
        seed: int = 0,
    ) -> "Claim":
        """A claim about a circuit: alone it recovers at least 80% of the gap, and without it at least half is lost.

        Its controls are random circuits of its size that share nothing with it: connected ones of as many edges, or as
        many latents or experts at each site (where too few of these are left, at any). When a claim about edges is
        tested, the verdict also holds everything else that they can be held against, shown beside (`verdict.checks`).

        Args:
            circuit: As `ms.discover`, `ms.circuits.choose_latents` or `choose_experts` found it.
            dictionaries: Of latents: theirs, open or by place ("village/mlp.*", a folder). The file says where they
                are, so give places if somebody else is to verify it. By default those that ship with the model.
            behavior: Whose held-out prompts decide; by default the one that it was found for.
            predictions: Others than the two above.
            statement: One sentence of your own.
            seed: Of resamples and controls.

        Raises:
            BadClaim: the circuit does not say which behaviour it is for, and none is given.
            BadFile, DictionaryMismatch: the dictionaries of latents are missing, or others.
        """
        from mechscope.circuits.parts.circuit import PartCircuit
        from mechscope.claims.circuit_claims import behavior_of, circuit_predictions
        from mechscope.claims.part_claims import Parts, family_for_parts

        meant = behavior_of(circuit) if behavior is None else behavior
        how = f" found by {circuit.settings['method']}" if "method" in circuit.settings else ""
        mechanism: NamedMechanism = circuit
        of, controls = "edges", RIVALS
        if isinstance(circuit, PartCircuit):
            mechanism = Parts.of(circuit, dictionaries)
            of, controls = f"{circuit.part}s", family_for_parts(mechanism)
        elif dictionaries is not None:
            raise BadClaim(
                "edges are not read by dictionaries", got=circuit.name, instead="Claim.about(circuit)"
            )
        return cls(
            statement or f"The circuit of {len(circuit)} {of}{how} carries {meant.name}",
            behavior=meant,
            mechanism=mechanism,
            predictions=circuit_predictions() if predictions is None else predictions,
            controls=controls,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        """The frozen contents and their id."""
        return json.loads(self.canonical) | {"id": self.id}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Claim":
        """Rebuild a claim as it was frozen, its software included.

        Raises:
            BadFile: fields are missing or strange.
            ClaimEdited: the contents do not give the id.
        """
        if set(plain) != {*FIELDS, "id"} or plain["format"] != FORMAT:
            raise BadFile(
                "not a claim", got=sorted(plain), instead=f"the fields {', '.join((*FIELDS, 'id'))}"
            )
        if hash_json({name: plain[name] for name in FIELDS}) != plain["id"]:
            raise ClaimEdited(
                "the claim's contents do not give its id",
                got=f"id {str(plain['id'])[:12]}",
                because="a claim is frozen before its held-out split is opened; an edit makes another claim",
                instead="the file as it was saved, or a new claim with an id of its own",
            )
        behavior, mechanism = plain["behavior"], plain["mechanism"]
        return cls(
            plain["statement"],
            behavior=RecordedBehavior(behavior["name"], canonical_json(behavior["recipe"])),
            mechanism=RecordedMechanism(mechanism["name"], canonical_json(mechanism["json"])),
            predictions=[Prediction.from_json(entry) for entry in plain["predictions"]],
            controls=plain["controls"],
            seed=plain["seed"],
            software=plain["software"],
        )

    def save(self, path: str | Path) -> None:
        """Write the frozen claim, before any held-out prompt is read."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Claim":
        """Read what `save` wrote.

        Raises:
            BadFile: missing, torn, or no claim. UnsafeFile: a pickle. ClaimEdited: its id no longer fits.
        """
        plain = open_json(path)
        if not isinstance(plain, dict):
            raise BadFile("not a claim", got=str(path), because="it holds no JSON object")
        return cls.from_json(plain)


def _problems(claim: Claim) -> list[str]:
    problems = []
    if not claim.statement.strip():
        problems.append("the statement is empty")
    if not isinstance(claim.mechanism, NamedMechanism):
        problems.append(f"a {type(claim.mechanism).__name__} has no name and to_json, so it is no mechanism")
    if not claim.controls.strip():
        problems.append("it names no control family")
    if isinstance(claim.seed, bool) or claim.seed < 0:
        problems.append("the seed is a whole number from 0 on")
    kinds = [prediction.kind for prediction in claim.predictions]
    if isinstance(claim.behavior, Behavior) and isinstance(claim.mechanism, NamedMechanism):
        problems += text_problems(claim.mechanism.to_json(), claim.predictions, claim.behavior.recipe())
    if not kinds:
        problems.append("it predicts nothing")
    elif set(kinds) == {"spares"}:
        problems.append("it predicts sparing only, which a mechanism that does nothing fulfils")
    if len(set(claim.predictions)) != len(kinds):
        problems.append("it predicts the same twice")
    if isinstance(claim.behavior, Behavior):
        own = recorded(claim.behavior)
        if any(prediction.behavior == own for prediction in claim.predictions):
            problems.append("it spares its own behaviour, which says nothing about another one")
        problems += _wrong_way_round(own)
    return problems


def _wrong_way_round(behavior: RecordedBehavior) -> list[str]:
    from mechscope.interventions.metrics import SMALLER_IS_MORE  # torch, which a claim needs no sooner

    metric = behavior.recipe().get("metric", {}).get("kind", "")
    if metric not in SMALLER_IS_MORE:
        return []
    return [
        f"{metric} falls where the behaviour grows, so that a loss would be read as a gain: take another metric, "
        'as behavior.metric_as("logit_difference")'
    ]
