"""Metrics: what an experiment reads off the logits, as frozen values.

A metric says which positions and which vocabulary columns it reads, so that the engine computes no others. One
number a row; larger means more of the behaviour, except for KL, rank and user functions, which say what they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.interventions.intervention import Value
from mechscope.vocabulary.errors import BadFile, NotSerializable, RegistrationError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a metric reads.

    Args:
        positions: Positions of each row, negative from the end; the same for all rows.
        columns: Vocabulary columns, [rows, n]; None for all of them.
    """

    positions: tuple[int, ...] = (-1,)
    columns: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Base of all metrics.

    Args:
        position: Position whose logits are read.
    """

    kind: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    larger_is_more: ClassVar[bool] = True
    position: int = -1

    @property
    def n_rows(self) -> int | None:
        """Rows that the metric has answers for; None if it serves any number."""
        return None

    @property
    def token_ids(self) -> frozenset[int]:
        """Tokens that it tells apart by their ids."""
        return frozenset()

    def reading(self) -> Reading:
        """Positions and columns that it reads."""
        return Reading(positions=(self.position,))

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        """One number a row from the logits read, in the order of `reading()`."""
        raise RegistrationError(
            f"{type(self).__name__} has no `measure`.", because="every metric says what it measures"
        )

    def select(self, rows: Sequence[int]) -> "Metric":
        """The metric for some rows only."""
        return self

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """JSON form; `metric_from_json` is its inverse. Tensors go into `tensors` by digest."""
        plain = {name: _plain(value, tensors) for name, value in self.__dict__.items()}
        return {"kind": self.kind, **plain}


Answers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _OfAnswers(Metric):
    """Reads answers and, where given, foils: sets of token ids, one set a row.

    Args:
        answers: Right answers of each row.
        wrong: Foils of each row; may be empty where the metric needs none.
    """

    reads_foils: ClassVar[bool] = False
    answers: Answers
    wrong: Answers = ()

    def __post_init__(self) -> None:
        n_foiled = sum(map(bool, self.wrong))
        if (
            any(len(row) == 0 for row in self.answers)
            or (self.wrong and len(self.wrong) != len(self.answers))
            or (self.reads_foils and n_foiled not in (0, len(self.wrong)))
        ):
            raise ShapeError(
                "A metric needs an answer for every row, and foils for every row or for none.",
                got=f"answers of sizes {[len(row) for row in self.answers][:8]}, "
                f"foils of sizes {[len(row) for row in self.wrong][:8]}",
                instead="answers=((3,), (5,)), wrong=((4,), (6,))",
            )

    @property
    def n_rows(self) -> int | None:
        return len(self.answers)

    @property
    def token_ids(self) -> frozenset[int]:
        return frozenset(index for row in (*self.answers, *self.wrong) for index in row)

    def select(self, rows: Sequence[int]) -> "Metric":
        wrong = tuple(self.wrong[row] for row in rows) if self.wrong else ()
        return replace(self, answers=tuple(self.answers[row] for row in rows), wrong=wrong)

    def _reading_of_sets(self) -> Reading:
        """Answers, then foils, and no other column."""
        answers, _, wrong, _ = self._sets(torch.device("cpu"))
        return Reading(positions=(self.position,), columns=torch.cat([answers, wrong], dim=1))

    def _sets(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Padded ids and masks of answers and foils."""
        wrong = self.wrong or ((),) * len(self.answers)
        return *_padded(self.answers, device), *_padded(wrong, device)

    def _sets_for(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _refuse_other_rows(self, logits)
        return self._sets(logits.device)


@dataclass(frozen=True, kw_only=True)
class LogitDifference(_OfAnswers):
    """Logit of the answer less the foil's; mean logits where a side is a set. In logits."""

    kind: ClassVar[str] = "logit_difference"
    reads_foils: ClassVar[bool] = True
    unit: ClassVar[str] = "logits"

    def reading(self) -> Reading:
        return self._reading_of_sets()

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        answers, has_answer, _, has_wrong = self._sets_for(logits)
        n = answers.shape[1]
        right, foil = logits[:, 0, :n], logits[:, 0, n:]
        return _mean(right, has_answer) - _mean(foil, has_wrong)


@dataclass(frozen=True, kw_only=True)
class LogProbability(_OfAnswers):
    """Log-probability of the answer (of any of them, where it is a set), in nats."""

    kind: ClassVar[str] = "log_probability"
    unit: ClassVar[str] = "nats"

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        answers, has_answer, _, _ = self._sets_for(logits)
        found = logits[:, 0].log_softmax(-1).gather(1, answers)
        return found.masked_fill(~has_answer, float("-inf")).logsumexp(1)


@dataclass(frozen=True, kw_only=True)
class ProbabilityDifference(_OfAnswers):
    """Probability of the answers less that of the foils, -1 to 1."""

    kind: ClassVar[str] = "probability_difference"
    reads_foils: ClassVar[bool] = True
    unit: ClassVar[str] = "probability"

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        answers, has_answer, wrong, has_wrong = self._sets_for(logits)
        probabilities = logits[:, 0].softmax(-1)
        right = (probabilities.gather(1, answers) * has_answer).sum(1)
        return right - (probabilities.gather(1, wrong) * has_wrong).sum(1)


@dataclass(frozen=True, kw_only=True)
class Rank(_OfAnswers):
    """Rank of the answer among all tokens, 0 for the most probable; of the best one where it is a set."""

    kind: ClassVar[str] = "rank"
    unit: ClassVar[str] = "rank"
    larger_is_more: ClassVar[bool] = False

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        answers, has_answer, _, _ = self._sets_for(logits)
        best = logits[:, 0].gather(1, answers).masked_fill(~has_answer, float("-inf")).max(1).values
        # Half precision can't count beyond a few hundred.
        wide = torch.promote_types(logits.dtype, torch.float32)
        return (logits[:, 0] > best[:, None]).sum(1).to(wide)


@dataclass(frozen=True, kw_only=True)
class Accuracy(_OfAnswers):
    """1 where the most probable token is an answer, else 0. With foils: where an answer beats every foil.

    With foils for every row only answers and foils are read; without, every column.
    """

    kind: ClassVar[str] = "accuracy"
    reads_foils: ClassVar[bool] = True
    unit: ClassVar[str] = "fraction"

    def reading(self) -> Reading:
        return self._reading_of_sets() if self.wrong else Reading(positions=(self.position,))

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        answers, has_answer, _, has_wrong = self._sets_for(logits)
        row = logits[:, 0]
        right = row[:, : answers.shape[1]] if self.wrong else row.gather(1, answers)
        best = right.masked_fill(~has_answer, float("-inf")).max(1).values
        if self.wrong:
            rival = row[:, answers.shape[1] :].masked_fill(~has_wrong, float("-inf")).max(1).values
            return (best > rival).to(logits.dtype)
        return (best >= row.max(1).values).to(logits.dtype)


@dataclass(frozen=True, kw_only=True)
class KL(Metric):
    """Divergence of the output from a reference distribution, KL(reference || output), in nats.

    Args:
        reference: Logits of the reference run at the position, [rows, d_vocab].

    Caveat: its gradient at the reference itself is zero.
    """

    kind: ClassVar[str] = "kl"
    unit: ClassVar[str] = "nats"
    larger_is_more: ClassVar[bool] = False
    reference: Value

    @property
    def n_rows(self) -> int | None:
        return self.reference.tensor.shape[0]

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        _refuse_other_rows(self, logits)
        reference = self.reference.tensor.to(logits).log_softmax(-1)
        return (reference.exp() * (reference - logits[:, 0].log_softmax(-1))).sum(-1)

    def select(self, rows: Sequence[int]) -> "Metric":
        return replace(self, reference=Value(self.reference.tensor[list(rows)]))


@dataclass(frozen=True, kw_only=True)
class UserMetric(Metric):
    """A user's function of the logits read; works everywhere, cannot be saved.

    Args:
        function: [rows, n_positions, d_vocab] to [rows]; called with any rows of the batch, each judged by itself.
        positions: Positions it reads.
    """

    kind: ClassVar[str] = "user"
    unit: ClassVar[str] = "user"
    function: Callable[[Tensor], Tensor]
    positions: tuple[int, ...] = (-1,)

    def reading(self) -> Reading:
        return Reading(positions=self.positions)

    def measure(self, logits: Float[Tensor, "rows pos columns"]) -> Float[Tensor, " rows"]:
        found = self.function(logits)
        if found.shape != logits.shape[:1]:
            raise ShapeError(
                "A metric must return one number a row.",
                got=f"shape {list(found.shape)}",
                because=f"there are {logits.shape[0]} rows",
                instead="reduce over positions and vocabulary",
            )
        return found

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable("A user's function cannot be saved.", instead="one of the built-in metrics")


METRICS: dict[str, type[_OfAnswers]] = {
    cls.kind: cls for cls in (LogitDifference, LogProbability, ProbabilityDifference, Rank, Accuracy)
}
"""Metrics of answers and foils, by name."""

SMALLER_IS_MORE = tuple(cls.kind for cls in (*METRICS.values(), KL) if not cls.larger_is_more)
"""Metrics that fall where the behaviour grows."""


def metric_from_json(saved: dict[str, Any], tensors: Mapping[str, Tensor] = MappingProxyType({})) -> Metric:
    """Rebuild a metric from `to_json`.

    Args:
        saved: As `to_json` gave it.
        tensors: By digest, as `to_json` filled them.

    Raises:
        BadFile: an unknown kind, or a tensor that is missing or another.
    """
    if saved.get("kind") == KL.kind:
        return KL(position=saved["position"], reference=_tensor(saved["reference"], tensors))
    cls = METRICS.get(saved.get("kind", ""))
    if cls is None:
        raise BadFile(
            f'"{saved.get("kind")}" is not a metric that can be saved.',
            got=str(saved)[:80],
            instead=", ".join((*METRICS, KL.kind)),
        )
    rows = {key: tuple(tuple(row) for row in saved[key]) for key in ("answers", "wrong")}
    return cls(position=saved["position"], **rows)


def _plain(value: Any, tensors: dict[str, Tensor] | None) -> Any:
    if not isinstance(value, Value):
        return value
    if tensors is not None:
        tensors[value.digest] = value.tensor
    return value.digest


def _tensor(digest: str, tensors: Mapping[str, Tensor]) -> Value:
    found = Value(tensors[digest]) if digest in tensors else None
    if found is None or found.digest != digest:
        raise BadFile(
            "A metric's tensor is missing." if found is None else "A metric's tensor was changed.",
            got=digest[:12],
            because="the reference distribution is stored beside the JSON",
            instead="the tensors as they were saved",
        )
    return found


def answer_sets(answers: Sequence[int] | Sequence[Sequence[int]]) -> Answers:
    """Answers as sets, one a row: [3, 5] becomes ((3,), (5,))."""
    return tuple((item,) if isinstance(item, int) else tuple(item) for item in answers)


def _padded(sets: Answers, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in sets), default=0)
    ids = torch.tensor(
        [list(row) + [0] * (width - len(row)) for row in sets], dtype=torch.long, device=device
    )
    mask = torch.tensor(
        [[True] * len(row) + [False] * (width - len(row)) for row in sets], dtype=torch.bool, device=device
    )
    return ids.reshape(len(sets), width), mask.reshape(len(sets), width)


def _mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean of the entries that are present; zero for a row that has none."""
    return values.masked_fill(~present, 0.0).sum(1) / present.sum(1).clamp_min(1)


def _refuse_other_rows(metric: Metric, logits: Tensor) -> None:
    if metric.n_rows not in (None, logits.shape[0]):
        raise ShapeError(
            "The metric has answers for another number of rows.",
            got=f"{metric.n_rows} rows of answers, logits of {logits.shape[0]} rows",
            because="it reads one answer a row",
            instead="metric.select(rows)",
        )
