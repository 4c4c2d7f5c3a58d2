"""`python -m benchmarks.claim_calibration`: measure the error rates of claims; exit code 1 if a gate is not met.

    python -m benchmarks.claim_calibration                         everything, at length
    python -m benchmarks.claim_calibration power --claims 20       a part, a rehearsal (not saved)
    python -m benchmarks.claim_calibration --village FOLDER        a village that is not bundled

Interrupted runs go on where they were. Progress is on the error stream; one line of JSON a calibration on the
output stream; full results in benchmarks/results/.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.claim_calibration.outcomes import Rates
from benchmarks.claim_calibration.running import Settings

RESULTS = Path(__file__).resolve().parents[1] / "results"
FEWEST_CLAIMS, FEWEST_POWER = 400, 100


def _wrong_heads(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.wrong_heads import run

    return run(settings)


def _random_twins(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.random_twins import run

    return run(settings)


def _permuted_answers(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.permuted_answers import run

    return run(settings)


def _random_directions(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.random_directions import run

    return run(settings)


def _synthetic_tables(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.synthetic_tables import run

    return run(settings)


def _power(settings: Settings) -> Rates:
    from benchmarks.claim_calibration.power import run

    return run(settings)


PARTS: dict[str, Callable[[Settings], Rates]] = {
    "synthetic-tables": _synthetic_tables,
    "wrong-heads": _wrong_heads,
    "power": _power,
    "permuted-answers": _permuted_answers,
    "random-twins": _random_twins,
    "random-directions": _random_directions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run calibrations, print and save their rates."""
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        print(f"no such calibration: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    settings = Settings(
        n_claims=options.claims,
        n_power=options.power_claims,
        seed=options.seed,
        village=options.village,
        work=options.work,
        n_workers=options.workers,
    )
    passed = True
    for name in options.parts or PARTS:
        rates = PARTS[name](settings)
        is_whole = options.claims >= FEWEST_CLAIMS and options.power_claims >= FEWEST_POWER
        if is_whole:
            rates.save(RESULTS)
        plain = rates.to_json()
        shown = {key: plain[key] for key in ("name", "passed", "seconds", "variants")}
        print(json.dumps(shown if is_whole else shown | {"rehearsal": True}), flush=True)
        passed &= rates.passed
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claim_calibration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument("--claims", type=int, default=FEWEST_CLAIMS, help="claims of each kind; 400 count")
    parser.add_argument(
        "--power-claims", type=int, default=FEWEST_POWER, help="claims about the truth; 100 count"
    )
    parser.add_argument("--seed", type=int, default=0, help="root of the tree of seeds")
    parser.add_argument("--village", default="village", help="bundled name or folder of the trained model")
    parser.add_argument("--work", type=Path, default=Settings.work, help="where tables are kept between runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
