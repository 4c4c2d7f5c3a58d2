"""What stands beside the claim about a circuit in its report: other tests, and the search where nothing is to find."""

from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.control_result import Discovery, DiscoveryControls
from mechscope.circuits.statistics.significance_result import (
    CANNOT_TELL,
    CONTRADICTED,
    HOLDS,
    NOT_CONTRADICTED,
    NOT_SHOWN,
    CircuitTest,
)
from mechscope.figures import Block, Bullets, Callout, Lines, Prose, Section, Table, number

QUESTIONS = {
    "sufficiency": "Sufficiency: alone, is it closer to the model than random circuits of its size?",
    "necessity": "Necessity: does removing it cost more than removing random circuits of its size?",
    "minimality": "Minimality: does each of its {part}s matter more than a random one?",
    "random parts removed": "Random parts: does it keep the behaviour when a random part of the rest is removed?",
    "worst part removed": "Worst part: and when the part is chosen against it?",
    "equivalence": "Equivalence: is it above the model about as often as below it?",
    "independence": "Independence: does what is left without it know nothing of the model's output?",
}
"""What each test asks, in the order of the report."""

WORDS = {
    HOLDS: "the answer is yes",
    NOT_SHOWN: "the prompts do not show that it is yes",
    CONTRADICTED: "the answer is no",
    NOT_CONTRADICTED: "the prompts do not show that it is no",
    CANNOT_TELL: "the test has no say here",
}

TOLD = ("minimality", "random parts removed", "worst part removed")
"""Tests whose note says more than the estimate."""

WORLDS = {
    "redrawn weights": "the same network with random weights, each tensor of its own mean and spread",
    "permuted weights": "the same network with each tensor's weights shuffled",
    "permuted answers": "the model itself, each prompt asked for another prompt's answer",
}
"""What each world without the mechanism is."""


def checks_sections(
    checks: CircuitChecks | None, *, about: str = "", more_controls: str = ""
) -> list[Section]:
    """All that stands beside a claim; none where nothing does.

    Args:
        checks: Of the claim's verdict.
        about: What the claim is about, where a report has several claims.
        more_controls: How to ask for more searches where there is nothing to find, such as "--runs 0,19".
    """
    if checks is None:
        return []
    controls = controls_section(checks, more=more_controls)
    return [tests_section(checks, about=about), *([] if controls is None else [controls])]


def tests_section(checks: CircuitChecks, *, about: str = "") -> Section:
    """The tests that decide nothing: questions, estimates, corrected p, what they say."""
    level = f"{checks.tests[0].level:.0%}" if checks.tests else "5%"
    n_pairs, n_units = checks.settings.get("n_pairs"), checks.settings.get("n_units")
    order = {name: place for place, name in enumerate(QUESTIONS)}
    tests = sorted(checks.tests, key=lambda test: order.get(test.name, len(order)))
    rows = []
    for test in tests:
        _, measured, _, p, corrected, outcome = test.row()
        rows.append((_question(checks, test.name), outcome, measured, _estimate(test), p, corrected))
    said = "; ".join(
        f"**{word}**: {told}" for word, told in WORDS.items() if word in {test.outcome for test in tests}
    )
    blocks: list[Block] = [
        Prose(
            "These questions were not part of the claim and **its verdict does not depend on them**: they show "
            f"where the circuit is strong and where it is weak. They were asked on {n_pairs} held-out pairs "
            f"({n_units} units)."
        ),
        Table(
            ("question", "outcome", "what is measured", "estimate [95%]", "p", "p (Holm)"),
            rows,
            caption=f"{said}. p (Holm) is corrected for the {len(rows)} questions: that any yes or no in this table is "
            f"wrong happens by chance in at most {level} of such reports.",
        ),
        Bullets(
            [
                f"{_question(checks, test.name).partition(':')[0]}: {test.note}."
                for test in tests
                if test.name in TOLD
            ]
        ),
    ]
    if checks.left_out:
        blocks.append(Callout("What could not be asked", list(checks.left_out)))
    claim = f"the claim about {about}" if about else "the claim"
    return Section(f"Beside {claim}: other tests", blocks)


def controls_section(checks: CircuitChecks, *, more: str) -> Section | None:
    """The search again in worlds without the mechanism; None where it was not run."""
    controls = checks.controls
    if controls is None:
        return None
    n = max(one.n_draws for one in checks.worlds)
    asked = f" (`{more}`)" if more else ""
    blocks: list[Block] = [
        Prose(
            "A search that finds as good a circuit where there is nothing tells of itself. So the same search was "
            f"run {n} times in each of the worlds without the mechanism below, and what it found was "
            "measured on the same held-out pairs. **The verdict does not depend on it.** What a circuit carries is "
            "told as a share of the model's real gap between clean and corrupt prompts, since in a random network "
            "there is no gap of its own to take a share of."
        ),
        Bullets([f"**{one.world}**: {WORLDS.get(one.world, one.world)}." for one in checks.worlds]),
        Table(
            (
                "searched in",
                "outcome",
                f"{_part(checks)}s found",
                "carried, of the real gap",
                "has a gap",
                "rank of ours",
                "p",
            ),
            _rows(checks, controls),
            caption="Mean, and the lowest to the highest search. Has a gap: searches in whose world clean and corrupt "
            f"prompts can be told apart at all. **{HOLDS}**: at most 5% of searches there would carry as much as the "
            f"circuit; **{CANNOT_TELL}**: none does, but it takes 19 searches to show that{asked}; "
            f"**{NOT_SHOWN}**: some do.",
        ),
    ]
    if any(any(found.curve) for found in controls.controls):
        blocks.append(
            Lines(
                controls.labelled(),
                f"What the strongest {_part(checks)}s carry, from few to many: the model's, and each world's mean with "
                "its lowest and highest search as a band.",
            )
        )
    return Section("The same search where there is nothing to find", blocks)


def _rows(
    checks: CircuitChecks, controls: DiscoveryControls
) -> list[tuple[str, str, str, str, str, str, str]]:
    own = controls.real
    rows = [("the model", "–", _sizes([own]), _percent(own.carried), _told([own]), "–", "–")]
    for one in checks.worlds:
        found = controls.of(one.world)
        carried = [draw.carried for draw in found]
        mean = sum(carried) / len(carried)
        rows.append(
            (
                one.world,
                one.outcome,
                _sizes(found),
                f"{_percent(mean)} ({_percent(min(carried))} to {_percent(max(carried))})",
                _told(found),
                f"{one.rank} of {one.n_draws + 1}",
                number(one.p),
            )
        )
    return rows


def _part(checks: CircuitChecks) -> str:
    return str(checks.settings.get("part", "edge"))


def _question(checks: CircuitChecks, name: str) -> str:
    return QUESTIONS.get(name, name).format(part=_part(checks))


def _estimate(test: CircuitTest) -> str:
    """Shares in percent, with their interval."""
    if test.estimate is None or test.name == "independence":
        return "–" if test.estimate is None else number(test.estimate)
    ends = "" if test.interval is None else f" [{_percent(test.interval[0])}, {_percent(test.interval[1])}]"
    return _percent(test.estimate) + ends


def _percent(share: float) -> str:
    rounded = round(100 * share, 1) + 0.0  # no negative zero
    return f"{rounded:.1f}%".replace(".0%", "%").replace("-", "−")


def _sizes(found: list[Discovery]) -> str:
    sizes = sorted(0 if one.circuit is None else len(one.circuit) for one in found)
    return str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"


def _told(found: list[Discovery]) -> str:
    return f"{sum(one.has_a_gap for one in found)} of {len(found)}"
