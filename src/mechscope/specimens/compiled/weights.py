"""From a plan to numbers: the matrices of heads, the neurons of MLPs.

Owns: `SHARPNESS` and the two constructions. A selector is a bilinear form of scores, [BOS] the place to rest where
nothing is selected. A function is written as neurons: an AND for each combination of categories, and a step between
every two neighbouring levels of a number. Invariant: everything is exact but the softmax, which leaks e^-12.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.specimens.compiled.plan import AttentionSeries, Plan
from mechscope.specimens.compiled.rasp import Applied, Averaged, Condition, Counted, Series

SHARPNESS = 24.0
"""Nats between a selected key and one that misses one condition; half of it between a selected key and [BOS]."""
RAMP = 0.5
"""Share of the gap between two levels over which a step rises: wide enough that interpolated inputs meet a slope, and
narrow enough that a mean which counts [BOS] too still falls beside it."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head's matrices. `b_q` is a bias, so that a constant query reads nothing."""

    q: Float[Tensor, "d_head d_model"]
    b_q: Float[Tensor, " d_head"]
    k: Float[Tensor, "d_head d_model"]
    v: Float[Tensor, "d_head d_model"]
    o: Float[Tensor, "d_model d_head"]

    def reads(self) -> dict[str, Tensor]:
        """Its three inputs and the matrix that reads each."""
        return {"q": self.q, "k": self.k, "v": self.v}

    def padded(self, d_head: int) -> "Head":
        """The same head, with rows of zeros up to a width."""
        more = d_head - self.q.shape[0]

        def below(matrix: Tensor) -> Tensor:
            return torch.nn.functional.pad(matrix, (0, 0, 0, more))

        return Head(
            q=below(self.q),
            k=below(self.k),
            v=below(self.v),
            o=torch.nn.functional.pad(self.o, (0, more)),
            b_q=torch.nn.functional.pad(self.b_q, (0, more)),
        )


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """Neurons of an MLP: relu(reads @ x + bias), times writes."""

    reads: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " neuron"]
    writes: Float[Tensor, "neuron d_model"]

    def __len__(self) -> int:
        return len(self.bias)


def write_head(plan: Plan, series: AttentionSeries) -> Head:
    """The head that computes a copy, a mean or a width."""
    rows = [row for condition in series.selector.conditions for row in _condition_rows(plan, condition)]
    n_conditions = len(series.selector.conditions)
    bos = torch.zeros(plan.d_model, dtype=torch.float64)
    bos[plan.subspaces["is_bos"]] = 1.0
    # A width counts [BOS] like a selected key; elsewhere it is half-way between selected and not.
    rest = n_conditions * SHARPNESS - (0.0 if isinstance(series, Counted) else SHARPNESS / 2)
    rows.append((torch.zeros_like(bos), 1.0, rest * bos))
    if series in plan.copies_read:  # [BOS] itself always rests, so that what stands there is known
        rows.append((bos, 0.0, (n_conditions + 1) * SHARPNESS * bos))
    values, targets = _value_rows(plan, series, bos)
    d_head = max(len(rows), len(values))
    q, k, v = (torch.zeros(d_head, plan.d_model, dtype=torch.float64) for _ in range(3))
    o, b_q = torch.zeros(plan.d_model, d_head, dtype=torch.float64), torch.zeros(d_head, dtype=torch.float64)
    for index, (query, bias, key) in enumerate(rows):
        q[index], b_q[index], k[index] = query, bias, key
    v[: len(values)] = values
    o[targets, range(len(targets))] = 1.0
    return Head(q=q, b_q=b_q, k=k, v=v, o=o)


def _condition_rows(plan: Plan, condition: Condition) -> list[tuple[Tensor, float, Tensor]]:
    """(query row, query bias, key row) of each dimension in which queries and keys of a condition meet.

    Values that select, or are selected, alike share a dimension. Where all queries select alike, the query is a bias.
    """
    keys, queries = plan.domains[condition.keys].values, plan.domains[condition.queries].values
    is_selected = torch.tensor(
        [[bool(condition.predicate(key, query)) for query in queries] for key in keys], dtype=torch.float64
    )
    read_keys, read_queries = plan.reading_words(condition.keys), plan.reading_words(condition.queries)
    by_query, by_key = _classes(is_selected.T), _classes(is_selected)
    rows: list[tuple[Tensor, float, Tensor]] = []
    if len(by_query) == 1 and len(by_query[0]) == len(queries):
        return [
            (torch.zeros(plan.d_model, dtype=torch.float64), 1.0, SHARPNESS * is_selected[:, 0] @ read_keys)
        ]
    if len(by_query) <= len(by_key):
        for members in by_query:
            key = SHARPNESS * is_selected[:, members[0]] @ read_keys
            rows.append((read_queries[members].sum(0), 0.0, key))
    else:
        for members in by_key:
            query = SHARPNESS * is_selected[members[0]] @ read_queries
            rows.append((query, 0.0, read_keys[members].sum(0)))
    return rows


def _classes(rows: Tensor) -> list[list[int]]:
    """Indices of equal rows together; rows of zeros left out."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, row in enumerate(rows.tolist()):
        if any(row):
            groups.setdefault(tuple(row), []).append(index)
    return list(groups.values())


def _value_rows(plan: Plan, series: AttentionSeries, bos: Tensor) -> tuple[Tensor, list[int]]:
    """What a head reads of each key, and the dimensions of the residual stream that it writes them to."""
    place = plan.place(series)
    targets = list(range(place.start, place.stop))
    if isinstance(series, Counted):
        return bos[None], targets
    source = plan.domains[series.values].values
    read = plan.reading_words(series.values)
    if isinstance(series, Averaged):
        return torch.tensor([[float(value) for value in source]], dtype=torch.float64) @ read, targets  # type: ignore[arg-type]
    values = plan.domains[series].values
    rows = torch.zeros(len(values), plan.d_model, dtype=torch.float64)
    for index, value in enumerate(source):
        rows[values.index(value)] += read[index]
    rows[values.index(series.otherwise)] += bos
    return rows, targets


def write_neurons(plan: Plan, series: Applied) -> Neurons:
    """The neurons that compute a function of several categories, and of a number where there is one."""
    number = next((a for a in series.arguments if plan.domains[a].is_number), None)
    categories = [argument for argument in series.arguments if argument is not number]
    columns = _columns(plan, series)
    found = _Draft(plan.d_model)
    for combination in product(*(range(len(plan.domains[c].values)) for c in categories)):
        gate = torch.zeros(plan.d_model, dtype=torch.float64)
        for category, index in zip(categories, combination, strict=True):
            gate += plan.reading_words(category)[index]
        n_open = float(len(categories))
        if not categories:  # nothing but a number: closed at [BOS], where a number means nothing
            gate[plan.subspaces["is_bos"]] = -1.0
            n_open = 0.0
        known = {c: plan.domains[c].values[i] for c, i in zip(categories, combination, strict=True)}
        if number is None:
            found.neuron(gate, 1.0 - n_open, columns(known))
        else:
            _write_steps(plan, number, gate=gate, n_open=n_open, found=found, known=known, columns=columns)
    return found.neurons()


def _columns(plan: Plan, series: Applied):
    """From the value of each argument to the vector that the function's value is written as."""
    place, values = plan.place(series), plan.domains[series].values

    def write(known: Mapping[Series, object]) -> Tensor:
        image = series.function(*(known[argument] for argument in series.arguments))
        vector = torch.zeros(plan.d_model, dtype=torch.float64)
        vector[place.start + values.index(image)] = 1.0
        return vector

    return write


def _write_steps(
    plan: Plan, number: Series, *, gate: Tensor, n_open: float, found: "_Draft", known: dict, columns: object
) -> None:
    """The function along a number: its value at the lowest level, and a step wherever it changes.

    With the gate open, relu(s (x - m) + 1/2) - relu(s (x - m) - 1/2) rises from 0 to 1 around m; closed, both are 0.
    """
    domain = plan.domains[number]
    assert domain.levels is not None
    order = sorted(range(len(domain.values)), key=lambda index: domain.levels[index])  # type: ignore[index]
    images = [columns({**known, number: domain.values[index]}) for index in order]  # type: ignore[operator]
    levels = [domain.levels[index] for index in order]
    found.neuron(gate, 1.0 - n_open, images[0])
    read = plan.reading(number)[0]
    for below, above, was, is_now in zip(levels, levels[1:], images, images[1:], strict=False):
        if torch.equal(was, is_now):
            continue
        slope, middle = 1.0 / (RAMP * (above - below)), (above + below) / 2
        shut = 1.0 + slope * (max(abs(level) for level in levels) + abs(middle))
        for half, sign in ((0.5, 1.0), (-0.5, -1.0)):
            found.neuron(
                slope * read + shut * gate, half - slope * middle - shut * n_open, sign * (is_now - was)
            )


class _Draft:
    """Neurons as they are added."""

    def __init__(self, d_model: int) -> None:
        self.d_model = d_model
        self.rows: list[tuple[Tensor, float, Tensor]] = []

    def neuron(self, reads: Tensor, bias: float, writes: Tensor) -> None:
        self.rows.append((reads, bias, writes))

    def neurons(self) -> Neurons:
        return stack_neurons(self.rows, self.d_model)


def stack_neurons(rows: Sequence[tuple[Tensor, float, Tensor]], d_model: int) -> Neurons:
    """Neurons from (what each reads, its bias, what it writes)."""
    empty = torch.zeros(0, d_model, dtype=torch.float64)
    return Neurons(
        reads=torch.stack([row[0] for row in rows]) if rows else empty,
        bias=torch.tensor([row[1] for row in rows], dtype=torch.float64),
        writes=torch.stack([row[2] for row in rows]) if rows else empty.clone(),
    )
