"""`mechscope circuit` and `parts`: the edges, latents or experts that carry a behaviour, tested, as a report."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from mechscope.cli.terminal import bar, emit, facts, say
from mechscope.vocabulary.errors import BadCommand

if TYPE_CHECKING:
    from mechscope.investigations.found_circuit import FoundCircuit

N_PAIRS = 240

MOST_CONTROLS = 19
"""Searches in a world where there is nothing to find, unless asked for: as many as can show p <= 0.05."""


@app.command()
def circuit(
    model: ModelArgument,
    behavior: BehaviorArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, circuit.json and claim.json.")],
    method: Annotated[
        str, typer.Option("--method", help="eap-ig, eap, acdc, edge-pruning, ...: `ms.circuits.methods()`.")
    ] = "eap-ig",
    edges: Annotated[int, typer.Option("--edges", min=1, help="Edges at most.")] = 50,
    runs: Annotated[
        str,
        typer.Option(
            "--runs",
            metavar="N[,CONTROLS]",
            help="Searches on resampled prompts, and controls: searches in each of three worlds where there is "
            "nothing to find, N and at most 19 unless you say; 0 for none.",
        ),
    ] = "100",
    n: PairCountOption = N_PAIRS,
    pairs: PairsOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find the edges that carry a behaviour, test them on held-out prompts, and write a report."""
    n_runs, n_controls = read_runs(runs)
    opened = open_model(model, dtype=dtype.value, device=device)
    from mechscope.investigations.circuit_report import save_circuit_investigation
    from mechscope.investigations.circuit_search import CircuitSearch, investigate_circuit
    from mechscope.investigations.prompts import open_behavior

    loaded = open_behavior(behavior, opened, pairs=pairs, n=n, seed=seed)
    with bar() as tell:
        found = investigate_circuit(
            opened,
            loaded,
            search=CircuitSearch(
                method=method, n_edges=edges, n_runs=n_runs, n_controls=n_controls, seed=seed
            ),
            ledger=out,
            progress=tell,
        )
    options = {"--method": method, "--edges": edges, "--runs": f"{n_runs},{n_controls}", "--n": n}
    options |= {"--seed": seed}
    options |= {"--pairs": pairs, "--dtype": dtype.value, "--device": device, "--out": out}
    found = replace(found, command=_command("circuit", model, behavior, options))
    files = save_circuit_investigation(found, out)
    numbers = {
        "edges": len(found.circuit),
        "faithfulness": found.evaluation.faithfulness,
        "jaccard": None if found.stability is None else found.stability.jaccard,
        "stable edges": None if found.stability is None else len(found.stability.stable),
    }
    _tell(found, numbers, files, as_json=as_json)


class Grain(StrEnum):
    """What a circuit of parts is made of, and what happens to what is no part."""

    latents = "latents"
    latents_alone = "latents-alone"
    experts = "experts"
    experts_frozen = "experts-frozen"


@app.command()
def parts(
    model: ModelArgument,
    behavior: BehaviorArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, circuit.json and claim.json.")],
    grain: Annotated[
        Grain,
        typer.Option(
            "--grain",
            help="latents of dictionaries, whose errors stay (latents) or go (latents-alone); experts of a mixture, "
            "where routers choose anew (experts) or as before (experts-frozen).",
        ),
    ] = Grain.latents,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", min=1, help="Parts at most: 100 latents or a quarter of all experts unless said."
        ),
    ] = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionary",
            help="Of latents: a folder, one with a dictionary in each subfolder, or a name such as village/mlp.3; "
            "repeatable. By default the transcoders that ship with MODEL.",
        ),
    ] = None,
    n: PairCountOption = N_PAIRS,
    pairs: PairsOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find the latents of dictionaries or the experts that carry a behaviour, test them, and write a report."""
    places = places_of(model, grain, dictionary or [])
    opened = open_model(model, dtype=dtype.value, device=device)
    from mechscope.investigations.part_report import save_part_investigation
    from mechscope.investigations.part_search import PartSearch, investigate_parts
    from mechscope.investigations.prompts import open_behavior

    loaded = open_behavior(behavior, opened, pairs=pairs, n=n, seed=seed)
    search = PartSearch(grain=grain.value, n_parts=keep, dictionaries=places, seed=seed)
    with bar() as tell:
        found = investigate_parts(opened, loaded, search=search, ledger=out, progress=tell)
    options = {"--grain": grain.value, "--keep": keep, "--n": n}
    options |= {"--seed": seed, "--pairs": pairs, "--dtype": dtype.value, "--device": device, "--out": out}
    given = [word for place in dictionary or [] for word in ("--dictionary", place)]
    found = replace(found, command=_command("parts", model, behavior, options, given))
    files = save_part_investigation(found, out)
    numbers = {
        "circuit": found.circuit.name,
        "faithfulness": found.evaluation.faithfulness,
        "complement": found.evaluation.complement,
        "best random": float(found.evaluation.random_faithfulness.max()),
    }
    _tell(found, numbers, files, as_json=as_json)


def places_of(model: str, grain: Grain, given: Sequence[str]) -> tuple[str, ...]:
    """Where the dictionaries of latents are: as given, or the transcoders that ship with the model; () for experts.

    Raises:
        BadCommand: dictionaries of experts, or none of latents.
    """
    from mechscope.features.shipped import bundled_indexes

    if grain in (Grain.experts, Grain.experts_frozen):
        if given:
            raise BadCommand(
                "Experts are not read by dictionaries.",
                got=f"--grain {grain} --dictionary {given[0]}",
                instead="--grain latents, or no --dictionary",
            )
        return ()
    shipped = any(name.startswith("mlp.") for name in bundled_indexes(model))
    if not given and not shipped:
        raise BadCommand(
            "A circuit of latents needs the dictionaries that they are of.",
            got=f"--grain {grain} and no --dictionary",
            because=f"none ship with {model}",
            instead="--dictionary FOLDER, a dictionary's or one with a dictionary in each subfolder",
        )
    return tuple(given) or (f"{model}/mlp.*",)


def read_runs(text: str) -> tuple[int, int]:
    """Searches on resampled prompts, and searches in each world without the mechanism.

    >>> read_runs("100"), read_runs("10"), read_runs("100,0"), read_runs("0,99")
    ((100, 19), (10, 10), (100, 0), (0, 99))

    Raises:
        BadCommand: no such numbers, or a single search on resampled prompts.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise BadCommand(
            "Runs are a number, or two with a comma between.",
            got=f"--runs {text}",
            because="the first counts searches on resampled prompts, the second those where there is nothing to find",
            instead="--runs 100, --runs 100,0 or --runs 0,19",
        )
    n_runs = int(parts[0])
    if n_runs == 1:
        raise BadCommand(
            "One discovery has nothing to be compared with.", got=f"--runs {text}", instead="--runs 0 or 100"
        )
    return n_runs, int(parts[1]) if len(parts) == 2 else min(n_runs, MOST_CONTROLS)


def _tell(
    found: "FoundCircuit",
    numbers: Mapping[str, object],
    files: Mapping[str, Path],
    *,
    as_json: bool,
) -> None:
    """What was concluded, the numbers, what stands beside the claim, and where the report is."""
    shown = {"outcome": found.record.verdict.outcome, "statement": found.record.claim.statement, **numbers}
    checks = found.record.verdict.checks
    beside = {} if checks is None else checks.outcomes
    if as_json:
        emit({**shown, "checks": beside, "files": {name: str(path) for name, path in files.items()}})
        return
    facts({name: f"{value:.3f}" if isinstance(value, float) else value for name, value in shown.items()})
    if beside:
        say("\nbeside the claim, deciding nothing:")
        facts({f"  {name}": outcome for name, outcome in beside.items()})
    say(f"\n{files['report.html']}")


def _command(
    name: str, model: str, behavior: str, options: Mapping[str, object], more: Sequence[str] = ()
) -> str:
    """How to ask for the same again: sizes and seed in full, so that no default of another version decides."""
    given = {name: value for name, value in options.items() if value not in (None, "auto", "cpu")}
    return shlex.join(
        ["mechscope", name, model, behavior, *more, *(str(w) for pair in given.items() for w in pair)]
    )
