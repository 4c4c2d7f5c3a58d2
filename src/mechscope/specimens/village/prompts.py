"""Prompt pairs of the village's behaviours, by split: the door that the behaviours' floor uses.

Owns: `BEHAVIORS` and `draw_pairs`. Refuses: an unknown behaviour or split. Pure Python, no torch.
Invariant: a draw is a function of (behaviour, split, seed); a larger n extends a smaller one.
"""

from random import Random

from mechscope.specimens.village.idea import Idea, Unit
from mechscope.specimens.village.language import IDEAS, MEASURED_ONLY
from mechscope.specimens.village.pairs import SPLITS, Case, VillagePair, tidy
from mechscope.vocabulary.errors import BadPairs

_BY_NAME: dict[str, Idea] = {idea.name: idea for idea in (*IDEAS, *MEASURED_ONLY)}
BEHAVIORS: tuple[str, ...] = tuple(_BY_NAME)
MISBEHAVIOURS: tuple[str, ...] = tuple(idea.name for idea in IDEAS if idea.is_misbehaviour)

_PATIENCE = 50
"""Rounds through the units without a new pair after which there are no more."""


def draw_pairs(behavior: str, *, split: str, n: int, seed: int) -> list[VillagePair]:
    """Draw `n` different clean/corrupt pairs of a behaviour.

    Units (a couple of names, a year, a place) are visited in turn, so the pairs spread evenly over them.
    In "held_out", every second pair stands in a template that training never used.

    Args:
        behavior: One of `BEHAVIORS`.
        split: "train", "validation" or "held_out"; they share no entity.
        n: How many pairs; the first pairs do not depend on it.
        seed: Names the draw.

    Raises:
        BadPairs: the behaviour or the split has no such name, or the split has no n different pairs.
    """
    idea = idea_named(behavior, split)
    rng = Random(f"village pairs {behavior} {split} {seed}")
    units: list[Unit] = list(idea.units(split))
    rng.shuffle(units)
    drawn: dict[str, VillagePair] = {}
    attempt = last_new = 0
    while attempt - last_new <= _PATIENCE * len(units) + 1000:
        if len(drawn) == n:
            return list(drawn.values())
        uses_new_template = split == "held_out" and attempt // len(units) % 2 == 1
        templates = idea.held_out_templates if uses_new_template else idea.seen_templates()
        name, text = rng.choice(list(templates.items()))
        pair = _as_pair(
            idea.fill(rng, units[attempt % len(units)], template=text), split=split, template=name
        )
        attempt += 1
        if drawn.setdefault(pair.clean + " | " + pair.corrupt, pair) is pair:
            last_new = attempt
    raise BadPairs(
        f"behaviour {behavior!r} has no {n} different prompts in split {split!r}",
        got=n,
        because=f"its {len(units)} units and their templates ran out after {len(drawn)}",
        instead=f"ask for at most {len(drawn)}",
    )


def n_units(behavior: str, *, split: str) -> int:
    """Count the units of a split: the clusters that its prompts fall into."""
    return len(idea_named(behavior, split).units(split))


def _as_pair(case: Case, *, split: str, template: str) -> VillagePair:
    return VillagePair(
        clean=tidy(case.clean),
        corrupt=tidy(case.corrupt),
        answer=case.answer,
        wrong=case.wrong,
        answers=case.answers,
        wrongs=case.wrongs,
        split=split,
        entities=case.entities,
        template=template,
    )


def idea_named(behavior: str, split: str = "held_out") -> Idea:
    """Return the behaviour of that name, or refuse the name or the split."""
    if behavior not in _BY_NAME:
        raise BadPairs(
            "the village has no such behaviour",
            got=behavior,
            because="it is not in BEHAVIORS",
            instead=", ".join(BEHAVIORS),
        )
    if split not in SPLITS:
        raise BadPairs(
            "no such split", got=split, because="a behaviour has three splits", instead=", ".join(SPLITS)
        )
    return _BY_NAME[behavior]
