"""Scoring: whether a label predicts its latent: detection, fuzzing and intruder tests, with intervals.

Detection: does the label tell a text where the latent fires from a hard negative? Fuzzing: does it tell the tokens
that fire from others of the same text? Intruder: without any label, can the text that does not belong be found?
Hard negatives hold the latent's own tokens, or tokens of its nearest latents, where it is silent: a label that only
names the token is not enough. Questions are the units of the interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mechscope.features.examples import shower
from mechscope.features.labels import Label, Score
from mechscope.features.page import Example
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NotEnoughEvidence

if TYPE_CHECKING:
    from mechscope.features.explaining import Explainer
    from mechscope.features.index import FeatureIndex

BEFORE, AFTER = 12, 4
FEWEST = 5
"""Questions below which no interval is worth giving."""


class Material:
    """Texts about one latent: where it fires, drawn over all sizes, and where it might but does not.

    Args:
        index: Open.
        latent: Which.
        seed: Of the draws. Texts for labelling come from every second row (half 0), texts for scoring from the others
            (half 1), so that no test sees a document that a label was written from.
    """

    def __init__(self, index: "FeatureIndex", latent: int, *, seed: int = 0) -> None:
        self.index, self.latent, self.seed = index, latent, seed
        self.entries = index.entries(latent)
        self._show = shower(self.entries, index.tokens, strings=index.strings, before=BEFORE, after=AFTER)

    def firing(self, n: int, half: int) -> list[Example]:
        """Texts where the latent fires: the strongest of its half for labels, any of its half for tests."""
        mine = self._is_of(self.entries.token, half)
        tokens, values = self.entries.token[mine], self.entries.value[mine]
        if half == 0:
            order = np.argsort(-values.astype(float), kind="stable")
        else:
            order = generator_for(self.seed, "firing", self.latent).permutation(len(tokens))
        return self._distinct(tokens[order], n)

    def negatives(self, n: int, half: int) -> list[Example]:
        """Texts where it is silent throughout: half with its own tokens, half where its nearest latents fire."""
        rng = generator_for(self.seed, "negatives", self.latent, half)
        own, near = self._same_tokens(rng, 8 * n, half), self._near(rng, 8 * n, half)
        anywhere = rng.integers(0, max(1, self.index.tokens.n_tokens), 16 * n)
        anywhere = anywhere[self._is_of(anywhere, half)]
        hard = self._distinct(own, (n + 1) // 2, silent=True)
        taken = {one.token for one in hard}
        for places in (near, own, anywhere):
            fresh = [int(t) for t in places if int(t) not in taken]
            found = self._distinct(np.array(fresh, np.int64), n - len(hard), silent=True)
            hard, taken = hard + found, taken | {one.token for one in found}
        return hard

    def _is_of(self, tokens: np.ndarray, half: int) -> np.ndarray:
        """Which tokens stand in a row of a half."""
        return self.index.tokens.rows_at(tokens) % 2 == half

    def _same_tokens(self, rng: np.random.Generator, n: int, half: int) -> np.ndarray:
        if not len(self.entries):
            return np.zeros(0, np.int64)
        reader = self.index.tokens
        order = np.argsort(-self.entries.value.astype(float), kind="stable")[:200]
        ids = np.unique(reader.ids_at(self.entries.token[order]))
        everywhere: list[np.ndarray] = []
        for number, file in enumerate(reader.files):
            arrays = reader.arrays(number)
            places = np.flatnonzero(np.isin(arrays["ids"], ids) & np.asarray(arrays["counts"]))
            everywhere.append(places + file.first)
        found = np.setdiff1d(np.concatenate(everywhere), self.entries.token)
        return rng.permutation(found[self._is_of(found, half)])[:n]

    def _near(self, rng: np.random.Generator, n: int, half: int) -> np.ndarray:
        found: list[np.ndarray] = []
        for other in self.index.neighbors(self.latent, k=5):
            tokens = np.setdiff1d(self.index.entries(other.latent).token, self.entries.token)
            found.append(rng.permutation(tokens[self._is_of(tokens, half)])[:n])
        return rng.permutation(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _distinct(self, tokens: np.ndarray, n: int, *, silent: bool = False) -> list[Example]:
        chosen: list[Example] = []
        rows: set[int] = set()
        for token in tokens[: 50 * max(1, n)]:
            if len(chosen) >= n:
                break
            one = self._show(int(token))
            if one.row in rows or (silent and any(one.values)):
                continue
            rows.add(one.row)
            chosen.append(one)
        return chosen


def label_latent(
    index: "FeatureIndex", latent: int, *, explainer: "Explainer", n: int = 12, seed: int = 0
) -> Label:
    """Let an explainer write a latent's label, and keep it.

    Raises:
        NotEnoughEvidence: the latent fires in none of the texts for labels.
    """
    material = Material(index, latent, seed=seed)
    fires = material.firing(n, 0)
    if not fires:
        raise NotEnoughEvidence(
            f"Latent {latent} can't be labelled.",
            got=f"{len(material.entries)} firings",
            because="it fires in none of the rows that labels are written from, every second one",
            instead="an index of more text, or a label by hand",
        )
    text = explainer.explain(fires, [_unmarked(one) for one in material.negatives(n, 0)])
    return index.label(latent, text, by=explainer.name)


def score_label(
    index: "FeatureIndex", latent: int, *, judge: "Explainer", n: int = 20, seed: int = 0
) -> Label:
    """Test a latent's label by detection, fuzzing and intruders, and keep the scores.

    Args:
        index: Open.
        latent: One with a label.
        judge: Who answers.
        n: Questions of each test, at most.
        seed: Of the texts drawn. They are of other rows than those that the label was written from.

    Raises:
        NotEnoughEvidence: no label, or too few firings.
    """
    label = index.labels.get(latent)
    if label is None:
        raise NotEnoughEvidence(
            f"Latent {latent} has no label to score.", got="no label", instead="index.label(latent, text)"
        )
    material = Material(index, latent, seed=seed)
    tests: dict[str, Callable[[], tuple[list[float], float]]] = {
        "detection": lambda: (detect(material, label.text, judge, n), 0.5),
        "fuzzing": lambda: (fuzz(material, label.text, judge, n), 0.5),
        "intruder": lambda: (find_intruders(material, judge, max(FEWEST, n // 2)), 1 / N_INTRUDER_TEXTS),
    }
    for name, run in tests.items():
        answers, chance = run()
        if len(answers) >= FEWEST:
            index.labels.put_score(latent, _score(name, answers, chance, judge.name, seed))
    found = index.labels[latent]
    if not found.scores:
        raise NotEnoughEvidence(
            f"The label of latent {latent} can't be scored.",
            got=f"{len(material.entries)} firings",
            because=f"no test has {FEWEST} questions",
            instead="an index of more text",
        )
    return found


N_INTRUDER_TEXTS = 5


def detect(material: Material, label: str, judge: "Explainer", n: int) -> list[float]:
    """For each firing text beside a hard negative: 1 if the label fits it better, 0.5 if as well, else 0."""
    fires, silent = material.firing(n, 1), material.negatives(n, 1)
    pairs = min(len(fires), len(silent))
    if not pairs:
        return []
    rated = judge.rate(label, [_unmarked(one) for one in (*fires[:pairs], *silent[:pairs])])
    return [_better(a, b) for a, b in zip(rated[:pairs], rated[pairs:], strict=True)]


def fuzz(material: Material, label: str, judge: "Explainer", n: int) -> list[float]:
    """For each firing text: does the label fit its own marked tokens better than as many others of it?"""
    rng = generator_for(material.seed, "fuzzing", material.latent)
    right = [one for one in material.firing(n, 1) if _n_silent(one) >= sum(v > 0 for v in one.values)]
    if not right:
        return []
    wrong = [_fuzzed(one, rng) for one in right]
    rated = judge.rate(label, [*right, *wrong])
    return [_better(a, b) for a, b in zip(rated[: len(right)], rated[len(right) :], strict=True)]


def find_intruders(material: Material, judge: "Explainer", n: int) -> list[float]:
    """For each group of texts where the latent fires, with one hard negative among them: 1 if that one is picked."""
    rng = generator_for(material.seed, "intruder", material.latent)
    others = N_INTRUDER_TEXTS - 1
    fires, silent = material.firing(n * others, 1), material.negatives(n, 1)
    answers: list[float] = []
    for i in range(min(len(fires) // others, len(silent))):
        texts = [_unmarked(one) for one in (*fires[i * others : (i + 1) * others], silent[i])]
        order = rng.permutation(len(texts)).tolist()
        answers.append(float(order.index(others) == judge.pick([texts[j] for j in order])))
    return answers


def _score(test: str, answers: Sequence[float], chance: float, judge: str, seed: int) -> Score:
    from mechscope.data.intervals import Resamples, mean_bootstrap

    found = np.array(answers)
    resamples = Resamples(np.arange(len(found)), seed=seed, n_resamples=2000)
    value = mean_bootstrap(resamples, found)
    ends = value.interval(0.95)
    return Score(
        test=test,
        value=value.value,
        low=max(0.0, ends.low),
        high=min(1.0, ends.high),
        chance=chance,
        n_questions=len(found),
        judge=judge,
    )


def _unmarked(one: Example) -> Example:
    return replace(one, values=(0.0,) * len(one.values))


def _n_silent(one: Example) -> int:
    return sum(
        value == 0 and bool(token.strip()) for token, value in zip(one.tokens, one.values, strict=True)
    )


def _fuzzed(one: Example, rng: np.random.Generator) -> Example:
    """As many other tokens marked."""
    silent = [i for i, (t, v) in enumerate(zip(one.tokens, one.values, strict=True)) if v == 0 and t.strip()]
    n = sum(value > 0 for value in one.values)
    chosen = set(rng.choice(silent, n, replace=False).tolist())
    return replace(one, values=tuple(float(i in chosen) for i in range(len(one.values))))


def _better(a: float, b: float) -> float:
    return 0.5 if a == b else float(a > b)
