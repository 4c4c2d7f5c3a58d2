"""Place: where in the model a variable is taken to be: a site, positions, heads or units, or a subspace of those.

Owns: which coordinates of a token a place means. Refuses attention maps, whose keys are other tokens in each prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.circuits.abstraction.causal_model import Setting
from mechscope.circuits.abstraction.examples import Examples
from mechscope.interventions.intervention import Value
from mechscope.interventions.subspace import orthonormal
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange, ShapeError
from mechscope.vocabulary.sites import Site

Positions = int | Sequence[int] | Callable[[Setting], int | Sequence[int]] | None

Rows = Tensor | np.ndarray | Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the model.

    Args:
        site: A site that can be written, by name.
        positions: Among each prompt's real tokens, negative from the end; a function of the setting where the
            prompts' own differ (base and source then need equally many). None is all of them.
        heads: Heads as the point counts them; None is all.
        units: Indices on the last axis; None is all.
        subspace: Orthonormal rows over the coordinates chosen by heads and units; None is all of them.
    """

    site: str
    positions: Positions = None
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    subspace: Value | None = field(default=None)

    @classmethod
    def of(
        cls,
        site: str,
        *,
        positions: Positions = None,
        heads: int | Sequence[int] | None = None,
        units: int | Sequence[int] | None = None,
        subspace: Rows | None = None,
    ) -> "Place":
        """A place from the forms that people write; the span of `subspace`'s rows counts, not their lengths."""
        return cls(
            site=site,
            positions=_selection(positions),
            heads=_indices(heads),
            units=_indices(units),
            subspace=None if subspace is None else _spanned(subspace),
        )

    def within(self, subspace: Rows | None) -> "Place":
        """The same place, in a subspace of it; None is all of it."""
        return replace(self, subspace=None if subspace is None else _spanned(subspace))

    def positions_of(self, examples: Examples, rows: Sequence[int] | np.ndarray) -> list[list[int]]:
        """Positions in each of some examples, from 0.

        Raises:
            PositionOutOfRange: a prompt has no such position.
        """
        found: list[list[int]] = []
        for row in map(int, rows):
            n = int(examples.prompts.n_real[row])
            wanted = self.positions(examples.settings[row]) if callable(self.positions) else self.positions
            chosen = range(n) if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)
            outside = [index for index in chosen if not -n <= index < n]
            if outside:
                raise PositionOutOfRange(
                    f"A prompt has no such position at {self.site}.",
                    got=f"position {outside[0]} of example {row}",
                    because=f"it has {n} tokens",
                    instead="positions count real tokens from 0, or from the end with -1",
                )
            found.append([index % n for index in chosen])
        return found

    def coordinates(self, model: Model) -> Tensor:
        """Indices into all that a token carries at the site, heads after each other, [coordinate].

        Raises:
            InterventionMismatch: an attention map.
            PositionOutOfRange: heads or units that the site does not have.
        """
        sizes = self._sizes(model)
        grid = torch.arange(prod(sizes)).reshape(sizes)
        for axis, chosen, name in ((-1, self.units, "unit"), (0, self.heads, "head")):
            if chosen is None:
                continue
            if name == "head" and len(sizes) == 1:
                raise _no_such(self, "head", chosen, "a token carries one vector there")
            if any(not 0 <= index < sizes[axis] for index in chosen):
                raise _no_such(self, name, chosen, f"there are {sizes[axis]}")
            grid = grid.index_select(axis, torch.tensor(chosen))
        return grid.flatten()

    def full_subspace(self, model: Model) -> Tensor | None:
        """The subspace over all that a token carries, [row, coordinate]; None if there is none.

        Raises:
            ShapeError: its rows are as wide as something else.
        """
        if self.subspace is None:
            return None
        chosen, rows = self.coordinates(model), self.subspace.tensor
        if rows.shape[-1] != len(chosen):
            raise ShapeError(
                f"The subspace does not fit the place at {self.site}.",
                got=f"rows of width {rows.shape[-1]}",
                because=f"the place has {len(chosen)} coordinates",
                instead=f"rows of width {len(chosen)}: one entry a coordinate chosen by heads and units",
            )
        full = torch.zeros(len(rows), prod(self._sizes(model)), dtype=rows.dtype)
        full[:, chosen] = rows.cpu()
        return full

    def to_json(self) -> dict[str, Any]:
        """For records; of a function of the setting only that there was one."""
        positions = "by setting" if callable(self.positions) else self.positions
        found = {"site": self.site, "positions": positions, "heads": self.heads, "units": self.units}
        found = {name: list(v) if isinstance(v, tuple | list) else v for name, v in found.items()}
        if self.subspace is not None:
            found["subspace"] = {"shape": list(self.subspace.tensor.shape), "sha256": self.subspace.digest}
        return found

    def __str__(self) -> str:
        said = [self.site]
        said += [] if self.heads is None else [f"heads {', '.join(map(str, self.heads))}"]
        said += [] if self.units is None else [f"{len(self.units)} units"]
        said += ["by setting" if callable(self.positions) else f"position {self.positions}"] * (
            self.positions is not None
        )
        said += [] if self.subspace is None else [f"{len(self.subspace.tensor)}-dimensional subspace"]
        return ", ".join(said)

    def _sizes(self, model: Model) -> list[int]:
        site: Site = model.binding.site(self.site)
        if "query" in site.row.axes or not site.row.is_writable:
            raise InterventionMismatch(
                f"A variable can't be interchanged at {site}.",
                got=str(site),
                because="its keys are other tokens in each prompt"
                if site.row.is_attention_map
                else "it is derived from what the model forms",
                instead="q, k, v or z of the head, or the residual stream",
            )
        axes = [axis for axis in site.row.axes if axis not in ("batch", "pos")]
        return [model.sizes[axis] for axis in axes]


def _spanned(rows: Rows) -> Value:
    """Orthonormal rows of the same span."""
    table = (
        rows.detach().cpu()
        if isinstance(rows, Tensor)
        else torch.as_tensor(np.asarray(rows, dtype=np.float64))
    )
    return Value(orthonormal(table))


def _selection(positions: Positions) -> Positions:
    """Positions as they are kept: lists become tuples."""
    if (
        positions is None
        or callable(positions)
        or (isinstance(positions, int) and not isinstance(positions, bool))
    ):
        return positions
    if isinstance(positions, list | tuple | range) and all(isinstance(index, int) for index in positions):
        return tuple(positions)
    raise InterventionMismatch(
        "A place needs positions that can be counted.",
        got=repr(positions),
        instead="an index, a list of indices, a function from a setting to either, or None for all",
    )


def _indices(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else (value,) if isinstance(value, int) else tuple(int(i) for i in value)


def _no_such(place: Place, what: str, got: Sequence[int], because: str) -> PositionOutOfRange:
    return PositionOutOfRange(f"There is no such {what} at {place.site}.", got=list(got), because=because)
