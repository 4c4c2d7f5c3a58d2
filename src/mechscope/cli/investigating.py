"""`mechscope investigate` and `demo`: the main job. Files appear together, at the end."""

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mechscope.cli.application import (
    BehaviorArgument,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    PairCountOption,
    PairsOption,
    SeedOption,
    app,
)
from mechscope.cli.opening import open_model
from mechscope.cli.terminal import bar, emit, facts, say, uninterrupted
from mechscope.vocabulary.errors import BadFile

N_PAIRS = 600
DEMO_PAIRS = 204  # 102 held-out ones are enough for this behaviour, and the demo stays under 90 seconds
OutOption = Annotated[Path, typer.Option("--out", help="Folder for report, numbers and claim.")]
FreshOption = Annotated[
    bool,
    typer.Option("--fresh", help="Test on new held-out prompts that the ledger in DIR never saw opened."),
]

ChecksOption = Annotated[
    bool,
    typer.Option(
        "--checks",
        help="Also hold the circuit against everything that can stand beside its claim: other tests, and the search "
        "where there is nothing to find. Minutes; decides nothing.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One investigation, as it was asked for."""

    model: str
    behavior: str
    out: Path
    pairs: Path | None = None
    n: int = N_PAIRS
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    fresh: bool = False
    checks: bool = False

    @property
    def command(self) -> str:
        """How to ask for it again."""
        words = ["mechscope", "investigate", self.model, self.behavior, "--out", str(self.out)]
        defaults = Request(model="", behavior="", out=Path())
        for name in ("pairs", "n", "seed", "dtype", "device"):
            if (value := getattr(self, name)) != getattr(defaults, name):
                words += [f"--{name}", str(value)]
        words += [f"--{name}" for name in ("fresh", "checks") if getattr(self, name)]
        return shlex.join(words)


@app.command()
def demo(
    out: OutOption = Path("demo-report"),
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Explain how the bundled model tells who receives a gift: investigate village on ioi."""
    carry_out(Request(model="village", behavior="ioi", out=out, n=DEMO_PAIRS, device=device), as_json=as_json)


@app.command()
def investigate(
    model: ModelArgument,
    behavior: BehaviorArgument,
    out: OutOption,
    pairs: PairsOption = None,
    n: PairCountOption = N_PAIRS,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    fresh: FreshOption = False,
    checks: ChecksOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what carries a behaviour, claim it, test the claim on held-out prompts, and write a report."""
    request = Request(
        model=model,
        behavior=behavior,
        out=out,
        pairs=pairs,
        n=n,
        seed=seed,
        dtype=dtype.value,
        device=device,
        fresh=fresh,
        checks=checks,
    )
    carry_out(request, as_json=as_json)


def carry_out(request: Request, *, as_json: bool) -> None:
    """Open, investigate, save, and say what came out."""
    refuse_unless_folder(request.out)
    model = open_model(request.model, dtype=request.dtype, device=request.device)
    from mechscope.circuits.statistics.checks import CheckSettings
    from mechscope.circuits.statistics.significance import TestSettings
    from mechscope.investigations.investigate import investigate
    from mechscope.investigations.prompts import PAIR_FILES, open_behavior, other_behaviors, unopened
    from mechscope.investigations.saving import save_investigation

    pairs = request.pairs
    behavior = open_behavior(request.behavior, model, pairs=pairs, n=request.n, seed=request.seed)
    if pairs is None and Path(request.behavior).suffix.lower() in PAIR_FILES:
        pairs = Path(request.behavior)
    if request.fresh:
        behavior = unopened(behavior, request.out)
    with bar() as tell:
        found = investigate(
            model,
            behavior,
            others=other_behaviors(behavior, model, n=request.n, seed=request.seed),
            seed=request.seed,
            ledger=request.out,
            checks=CheckSettings(tests=TestSettings(seed=request.seed)) if request.checks else None,
            progress=tell,
        )
    found = replace(found, command=request.command)
    with uninterrupted():
        written = save_investigation(found, request.out, pairs=pairs)
    files = {name: str(path) for name, path in written.items()}
    head_part, edge_part = found.heads, found.edges
    heads = {"outcome": found.outcome, "statement": statement_of(found.record, head_part, found.stopped)}
    circuit = {
        "outcome": found.circuit_outcome,
        "statement": statement_of(found.circuit_record, edge_part, found.stopped),
    }
    verdict = None if found.circuit_record is None else found.circuit_record.verdict
    beside = {} if verdict is None or verdict.checks is None else verdict.checks.outcomes
    if as_json:
        told = {"checks": beside} if request.checks else {}
        emit({**heads, "circuit": circuit, **told, "files": files, "seconds": found.seconds})
        return
    shown = {
        f"heads: {found.outcome}": heads["statement"],
        f"circuit: {found.circuit_outcome}": circuit["statement"],
    }
    facts(({"no claim": found.stopped} if found.stopped else shown) | {"report": files["report.html"]})
    if beside:
        say("\nbeside the claim about the circuit, deciding nothing:")
        facts({f"  {name}": outcome for name, outcome in beside.items()})


def statement_of(record: Any, part: Any, otherwise: str) -> str:
    """What was claimed of a part, or why nothing was."""
    if record is not None:
        return record.claim.statement
    return part.stopped if part is not None and part.stopped else otherwise


def refuse_unless_folder(out: Path) -> None:
    """Refuse a place where no folder can be, before any work is done."""
    taken = next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None)
    if taken is not None:
        raise BadFile(
            f"{out} can't be a folder.",
            got=str(taken),
            because="a file of that name is there",
            instead="--out with the name of a folder, new or not",
        )
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise BadFile(
            f"{out} can't be written.",
            got=str(nearest),
            because="permission is denied",
            instead="another --out",
        )
