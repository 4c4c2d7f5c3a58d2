"""`python -m benchmarks`: the speed suite, one line of JSON a result; exit code 1 if a limit is failed.

python -m benchmarks                      everything
python -m benchmarks capture import       some
python -m benchmarks --pairs 3 capture    a rehearsal
python -m benchmarks --list               names
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.pairing import FEWEST_PAIRS
from benchmarks.suite import SUITE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks, each in its own process, and print their lines."""
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.names) - set(SUITE))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(SUITE)}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(SUITE))
        return 0
    names = options.names or list(SUITE)
    if options.here:
        lines = [line for name in names for line in SUITE[name](options.pairs)]
        for line in lines:
            print(line.to_json(), flush=True)
        return int(not all(line.passed for line in lines))
    return max(_in_a_process(name, options.pairs) for name in names)


def _in_a_process(name: str, n_pairs: int) -> int:
    command = [sys.executable, "-m", "benchmarks", "--here", "--pairs", str(n_pairs), name]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode not in (0, 1) or not _are_lines(done.stdout):
        print(f"{name} broke, exit code {done.returncode}", file=sys.stderr)
        return 3
    return done.returncode


def _are_lines(text: str) -> bool:
    try:
        return bool(text.strip()) and all(json.loads(line)["name"] for line in text.splitlines())
    except (ValueError, KeyError):
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="which; all by default")
    parser.add_argument(
        "--pairs", type=int, default=FEWEST_PAIRS, help="interleaved pairs, at least 15 count"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--here", action="store_true", help="in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
