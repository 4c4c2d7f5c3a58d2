"""`mechscope claim show | verify | test`: what somebody else can do with a claim file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechscope.cli.application import (
    ClaimArgument,
    DeviceOption,
    JsonOption,
    OtherModelOption,
    RecordedDictionaryOption,
    RecordedPairsOption,
    claim_app,
)
from mechscope.cli.opening import open_recorded
from mechscope.cli.terminal import bar, by_rows, emit, facts, say
from mechscope.vocabulary.errors import BadClaim, BadCommand, NotReproduced

if TYPE_CHECKING:
    from mechscope.claims.claim_file import ClaimRecord
    from mechscope.claims.verification import Difference


@claim_app.command()
def show(file: ClaimArgument, as_json: JsonOption = False) -> None:
    """Show a claim and its verdict; the file is refused if it was edited. No model is opened."""
    from mechscope.investigations.reproducing import open_claim

    claim, record = open_claim(file)
    if as_json:
        verdict = None if record is None else record.verdict.to_json()
        emit({"claim": claim.to_json(), "verdict": verdict})
        return
    say(str(claim))
    say()
    if record is None:
        say("frozen, not tested yet")
        return
    say(str(record.verdict))
    say()
    versions = [f"{name} {version}" for name, version in record.software.model_dump().items() if version]
    facts(
        {
            "model": f"{record.model.name} ({record.model.family}, {record.model.dtype}), "
            f"weights {record.model.weights_sha256[:16]}",
            "tested": record.created,
            "software": ", ".join(versions),
        }
    )


@claim_app.command()
def verify(
    file: ClaimArgument,
    exact: Annotated[bool, typer.Option("--exact", help="Ask for equal bits.")] = False,
    model: OtherModelOption = None,
    pairs: RecordedPairsOption = None,
    dictionary: RecordedDictionaryOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Recompute a tested claim; exit 0 only if it came out the same, 1 if not."""
    from mechscope.investigations.reproducing import existing_ledger, find_beside, open_claim, verify_record

    claim, record = open_claim(file)
    if record is None:
        raise BadClaim(
            "The claim was frozen and not tested yet.",
            got=str(file),
            because="there is no result to compare with",
            instead=f"mechscope claim test {file} --model MODEL --out TESTED.json",
        )
    opened = open_recorded(model, record.model.name, dtype=record.model.dtype, device=device)
    with bar() as tell:
        try:
            differences = verify_record(
                record,
                opened,
                beside=find_beside(claim, file, pairs=pairs, dictionaries=dictionary),
                exact=exact,
                ledger=existing_ledger(file.parent),
                progress=by_rows(tell),
            )
            why = ""
        except NotReproduced as error:
            differences, why = [], str(error)
    _say_whether_reproduced(record, differences, why=why, as_json=as_json)


@claim_app.command("test")
def test_again(
    file: ClaimArgument,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Draw new held-out prompts from the behaviour's generator.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Names the fresh draw.")] = 1,
    controls: Annotated[
        int | None,
        typer.Option(
            "--controls",
            min=0,
            help="Of a circuit: do all other tests too, with so many searches in each world where there is nothing "
            "to find.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to save the tested claim.")] = None,
    model: OtherModelOption = None,
    pairs: RecordedPairsOption = None,
    dictionary: RecordedDictionaryOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Test a claim from a file, once more or for the first time; the ledger beside it counts."""
    from mechscope.investigations.reproducing import find_beside, open_claim, retest

    claim, record = open_claim(file)
    if model is None and record is None:
        raise BadCommand(
            "The claim does not say of which model.",
            got=str(file),
            because="a claim that was not tested yet holds no model",
            instead="--model MODEL",
        )
    known = ("", "auto") if record is None else (record.model.name, record.model.dtype)
    opened = open_recorded(model, known[0], dtype=known[1], device=device)
    with bar() as tell:
        tested = retest(
            claim,
            opened,
            beside=find_beside(claim, file, pairs=pairs, dictionaries=dictionary),
            fresh_seed=seed if fresh else None,
            ledger=file.parent,
            progress=by_rows(tell),
            n_controls=controls,
        )
    if out is not None:
        tested.save(out)
    if as_json:
        emit({"verdict": tested.verdict.to_json(), "out": None if out is None else str(out)})
        return
    say(str(tested.verdict))
    if out is not None:
        say(f"\n{out}")


def _say_whether_reproduced(
    record: "ClaimRecord", differences: "list[Difference]", *, why: str, as_json: bool
) -> None:
    is_reproduced = not differences and not why
    if as_json:
        listed = [
            {"what": d.what, "saved": str(d.saved), "recomputed": str(d.recomputed), "tolerance": d.tolerance}
            for d in differences
        ]
        emit(
            {
                "reproduced": is_reproduced,
                "claim": record.claim.id,
                "outcome": record.verdict.outcome,
                "differences": listed,
                "because": why,
            }
        )
    elif is_reproduced:
        facts(
            {"reproduced": record.claim.statement, "verdict": record.verdict.outcome, "id": record.claim.id}
        )
    else:
        say(f"NOT REPRODUCED: {record.claim.statement}")
        for line in [str(difference) for difference in differences] or [why]:
            say(f"  {line}")
    if not is_reproduced:
        raise typer.Exit(1)
