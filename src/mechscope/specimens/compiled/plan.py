"""From a program to a plan: which layer computes what, and where in the residual stream it stands.

Owns: `View` (how a series is read off what was written), `Plan`, and the schedule: each series at the earliest
layer at which everything that it reads has been written. A function of one category costs nothing: its readers
read it off the category itself, by a linear map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.specimens.compiled.checking import Domain, check, series_of, sources_of
from mechscope.specimens.compiled.rasp import (
    Added,
    Applied,
    Averaged,
    Copied,
    Counted,
    Given,
    Program,
    Series,
    indices,
    tokens,
)
from mechscope.vocabulary.edges import Node

N_JUNK = 8

AttentionSeries = Copied | Averaged | Counted


@dataclass(frozen=True)
class View:
    """A series as a linear map of written ones: the sum over parts of matrix times what is written there.

    Args:
        parts: (written series, matrix [n_values of the series, width of the written one]); a number has one row.
    """

    parts: tuple[tuple[Series, Float[Tensor, "value written"]], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Where everything of a program stands.

    Args:
        program: The program.
        domains: Values of each series.
        views: How each series is read.
        times: When a written series stands in the residual stream: 0 for the embedding, 2 L + 1 after the attention
            of layer L, 2 L + 2 after its MLP.
    """

    program: Program
    domains: Mapping[Series, Domain]
    views: Mapping[Series, View]
    times: Mapping[Series, int]

    @cached_property
    def written(self) -> tuple[Series, ...]:
        """Series with a place of their own in the residual stream, tokens and indices first."""
        return tuple(sorted(self.times, key=lambda series: self.times[series]))

    @cached_property
    def n_layers(self) -> int:
        return max(1, max((time + 1) // 2 for time in self.times.values()))

    @cached_property
    def names(self) -> dict[Series, str]:
        """A name for each written series; numbered where the program gives none, or one twice."""
        names: dict[Series, str] = {}
        for number, series in enumerate(self.written):
            name = series.name or f"{type(series).__name__.lower()}_{number}"
            names[series] = f"{name}_{number}" if name in names.values() else name
        return names

    @cached_property
    def subspaces(self) -> dict[str, slice]:
        """Dimensions of the residual stream by name: each written series, the flag of [BOS], and the unread ones."""
        found, start = {}, 0
        for name, width in [
            *((self.names[series], self.width(series)) for series in self.written),
            ("is_bos", 1),
            ("junk", N_JUNK),
        ]:
            found[name] = slice(start, start + width)
            start += width
        return found

    @property
    def d_model(self) -> int:
        return self.subspaces["junk"].stop

    def width(self, series: Series) -> int:
        """Dimensions of a written series."""
        domain = self.domains[series]
        return 1 if domain.is_number else len(domain.values)

    def place(self, series: Series) -> slice:
        """Dimensions where a written series stands."""
        return self.subspaces[self.names[series]]

    def reading(self, series: Series) -> Float[Tensor, "value d_model"]:
        """The linear map from the residual stream to a series: one row a value, or one row for a number."""
        domain = self.domains[series]
        rows = torch.zeros(1 if domain.is_number else len(domain.values), self.d_model, dtype=torch.float64)
        for written, matrix in self.views[series].parts:
            rows[:, self.place(written)] += matrix
        return rows

    def reading_words(self, series: Series) -> Float[Tensor, "value d_model"]:
        """As `reading`, and nothing at [BOS], where a copy has left its `otherwise`."""
        rows = self.reading(series)
        for written, matrix in self.views[series].parts:
            if isinstance(written, Copied):
                left = self.domains[written].values.index(written.otherwise)
                rows[:, self.subspaces["is_bos"]] -= matrix[:, [left]]
        return rows

    @cached_property
    def copies_read(self) -> frozenset[Series]:
        """Copies that another series is computed from."""
        sources = {source for series in self.written for source in sources_of(series)}
        parts = {written for source in sources for written, _ in self.views[source].parts}
        return frozenset(written for written in parts if isinstance(written, Copied))

    def attention_at(self, layer: int) -> list[AttentionSeries]:
        """Series that heads of a layer compute, one head each."""
        return [series for series in self.written if self.times[series] == 2 * layer + 1]  # type: ignore[misc]

    def mlp_at(self, layer: int) -> list[Applied]:
        """Series that the MLP of a layer computes."""
        return [series for series in self.written if self.times[series] == 2 * layer + 2]  # type: ignore[misc]

    def writers(self, heads: Mapping[Series, int]) -> dict[Series, Node]:
        """The node that writes each series, given which head computes which."""
        found: dict[Series, Node] = {}
        for series, time in self.times.items():
            layer = (time - 1) // 2
            if time == 0:
                found[series] = Node(kind="embed")
            elif series in heads:
                found[series] = Node(kind="head", layer=layer, head=heads[series])
            else:
                found[series] = Node(kind="mlp", layer=layer)
        return found


def make_plan(program: Program) -> Plan:
    """Check a program and schedule it.

    Raises:
        BadProgram: with every problem of the program.
    """
    domains = check(program)
    domains = {
        tokens: Domain(tuple(program.alphabet)),
        indices: Domain(tuple(range(program.length))),
        **domains,
    }
    views: dict[Series, View] = {}
    times: dict[Series, int] = {tokens: 0, indices: 0}
    for series in (tokens, indices, *series_of(program)):
        if series in views:
            continue
        views[series] = _view(series, domains, views)
        if views[series].parts[0][0] is series and not isinstance(series, Given):
            times[series] = _time(series, views, times)
    return Plan(program=program, domains=domains, views=views, times=times)


def _view(series: Series, domains: Mapping[Series, Domain], views: Mapping[Series, View]) -> View:
    domain = domains[series]
    if isinstance(series, Added):
        parts: list[tuple[Series, Tensor]] = []
        for term in series.terms:
            parts += views[term].parts
        return View(tuple(parts))
    if isinstance(series, Applied) and len(series.arguments) == 1:
        (argument,) = series.arguments
        if not domains[argument].is_number:
            matrix = torch.zeros(len(domain.values), len(domains[argument].values), dtype=torch.float64)
            for column, value in enumerate(domains[argument].values):
                matrix[domain.values.index(series.function(value)), column] = 1.0
            return View(tuple((written, matrix @ below) for written, below in views[argument].parts))
    return View(((series, torch.eye(1 if domain.is_number else len(domain.values), dtype=torch.float64)),))


def _time(series: Series, views: Mapping[Series, View], times: Mapping[Series, int]) -> int:
    if isinstance(series, Applied):
        sources = series.arguments
    else:
        selected = [side for c in series.selector.conditions for side in (c.keys, c.queries)]  # type: ignore[attr-defined]
        sources = (*selected, *(() if isinstance(series, Counted) else (series.values,)))  # type: ignore[attr-defined]
    ready = max((times[written] for source in sources for written, _ in views[source].parts), default=0)
    if isinstance(series, Applied):
        return 2 * max(0, ceil((ready - 1) / 2)) + 2
    return 2 * ceil(ready / 2) + 1
