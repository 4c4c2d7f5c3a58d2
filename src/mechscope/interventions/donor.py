"""Donor: where the values of a patch come from, and which of them a token gets.

Values are matched by position among the real tokens, so donor and recipient may be padded differently.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechscope.interventions.intervention import Value
from mechscope.interventions.widths import refuse_other_batch, refuse_other_value
from mechscope.models.cache import Cache
from mechscope.models.run import Run
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.errors import BadFile, InterventionMismatch, ShapeError
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site, is_pattern, select_sites


@dataclass(frozen=True)
class Donor:
    """Values by site.

    Args:
        values: (site, tensor) pairs; the site "" serves every site. A tensor is [batch, pos, *site] in the axes of
            the table of points (batch or pos may be 1), [batch, *site] (one value a row), or [*site].
        n_pad: Padding columns of each donor row, [batch]; None if the tensor has the recipient's own columns.
        repeats_rows: Rows are taken round and round if there are fewer than the batch has.
    """

    values: tuple[tuple[str, Value], ...]
    n_pad: Value | None = None
    repeats_rows: bool = False

    @classmethod
    def of(cls, source: "Donor | Tensor | Run | Cache", at: str | Site) -> "Donor":
        """A donor from a tensor, a run or a cache.

        Raises:
            InterventionMismatch: something else was given.
        """
        if isinstance(source, Donor):
            return source
        if isinstance(source, Tensor):
            return cls((("", Value(source)),))
        cache = source.cache if isinstance(source, Run) else source
        if not isinstance(cache, Cache):
            raise InterventionMismatch(
                "A donor must be a tensor or a run.",
                got=type(source).__name__,
                instead="model.run(..., capture=[site]), a cache, or a tensor",
            )
        name = str(at)
        sites = select_sites(name, cache.readable) if is_pattern(name) else [cache.site(name)]
        return cls(tuple((str(site), Value(cache[site])) for site in sites), Value(cache.tokens.n_pad))

    @property
    def memory(self) -> Hashable:
        """Equal for donors of the same tensors, as long as both live."""
        n_pad = None if self.n_pad is None else tuple(self.n_pad.tensor.tolist())
        return tuple((name, value.memory) for name, value in self.values), n_pad, self.repeats_rows

    def serves(self, site: Site) -> bool:
        """True if there is a value for a site."""
        return any(name in ("", str(site)) for name, _ in self.values)

    def tensor_at(self, site: Site) -> Tensor:
        """The tensor that serves a site."""
        for name, value in self.values:
            if name in ("", str(site)):
                return value.tensor
        raise InterventionMismatch(
            f"The donor has no value for {site}.",
            got=", ".join(name for name, _ in self.values),
            because="the run that it came from did not capture it",
            instead=f'capture=["{site}"] in that run',
        )

    def refuse_unless_for(self, site: Site, facts: Facts) -> None:
        """Refuse before a run: no value for the site, or one of other axes than the site or the batch has.

        Raises:
            InterventionMismatch, ShapeError
        """
        tensor = self.tensor_at(site)
        refuse_other_value(tensor, site, facts)
        if self.n_pad is None and not self.repeats_rows:
            refuse_other_batch(tensor, site, facts)

    def gather(self, tokens: Tokens, like: Tensor) -> Tensor:
        """The donor's values for some tokens, in token form, shaped and typed like `like`.

        Raises:
            ShapeError: the donor's width is another.
            InterventionMismatch: the donor has no such position.
        """
        row = tokens.site.row
        tensor = self.tensor_at(tokens.site).to(like.device)
        n_axes = len(row.axes)
        if tensor.ndim == n_axes:
            found = self._by_token(to_token_form(tensor, row), tokens, like)
        elif tensor.ndim == n_axes - 1:
            found = tensor[self._rows(tensor, tokens.rows)]
        else:
            found = tensor.expand_as(like) if tensor.shape == like.shape[1:] else tensor
        if found.shape != like.shape:
            raise _misfit(tensor, found, like, tokens.site)
        return found.to(like.dtype)

    def _by_token(self, tensor: Tensor, tokens: Tokens, like: Tensor) -> Tensor:
        device = tensor.device
        rows = self._rows(tensor, tokens.rows)
        if self.n_pad is None:
            if tensor.shape[1] == 1:
                return tensor[rows, torch.zeros_like(rows)]
            columns = tokens.columns.to(device)
            _refuse_if_short(columns, tensor.shape[1], tokens.site)
            return tensor[rows, columns]
        n_pad = self.n_pad.tensor.to(device)
        n_pad = n_pad[self._rows(n_pad, tokens.rows)]
        positions = tokens.positions.to(device)
        is_real = positions >= 0
        columns = positions + n_pad
        _refuse_if_short(columns[is_real], tensor.shape[1], tokens.site)
        found = tensor[rows, columns.clamp(0, tensor.shape[1] - 1)]
        if tokens.site.row.is_attention_map and found.shape[:-1] == like.shape[:-1]:
            found = _align_keys(found, n_pad, tokens, like)
        if found.shape != like.shape:
            raise _misfit(tensor, found, like, tokens.site)
        # Padding holds nothing that could be matched, and nothing reads it.
        return torch.where(is_real.reshape(-1, *[1] * (like.ndim - 1)), found.to(like.dtype), like)

    def _rows(self, tensor: Tensor, rows: Tensor) -> Tensor:
        rows = rows.to(tensor.device)
        if tensor.shape[0] == 1:
            return torch.zeros_like(rows)
        if self.repeats_rows:
            return rows % tensor.shape[0]
        if len(rows) and int(rows.max()) >= tensor.shape[0]:
            raise ShapeError(
                "The donor has fewer rows than the batch.",
                got=f"{tensor.shape[0]} donor rows, row {int(rows.max())} written",
                instead="one donor row a prompt, or a single one for all",
            )
        return rows

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """JSON form; tensors by digest."""
        saved: list[Any] = []
        for name, value in (*self.values, *((("n_pad", self.n_pad),) if self.n_pad else ())):
            if tensors is not None:
                tensors[value.digest] = value.tensor.cpu().contiguous()
            saved.append([name, value.digest])
        return {"donor": saved, "repeats_rows": self.repeats_rows}

    @classmethod
    def from_json(cls, saved: dict[str, Any], tensors: dict[str, Tensor]) -> "Donor":
        """Inverse of `to_json`."""
        missing = [digest for _, digest in saved["donor"] if digest not in tensors]
        if missing:
            raise BadFile(
                "A donor's tensor is missing.",
                got=missing[0][:12],
                because="it is not among the tensors given",
            )
        found = {name: Value(tensors[digest]) for name, digest in saved["donor"]}
        n_pad = found.pop("n_pad", None)
        return cls(tuple(found.items()), n_pad, bool(saved.get("repeats_rows", False)))


def _align_keys(found: Tensor, n_pad: Tensor, tokens: Tokens, like: Tensor) -> Tensor:
    """Rows of a donor's attention map with its keys moved to the recipient's columns of the same positions.

    Keys that the donor lacks keep their own entry if that is empty (a later token than the query's).
    """
    device = found.device
    columns = torch.arange(tokens.n_columns - like.shape[-1], tokens.n_columns, device=device)
    positions = columns[None, :] - (tokens.columns - tokens.positions).to(device)[:, None]
    source = positions + n_pad[:, None]
    is_lacking = (source >= found.shape[-1])[:, None, :]
    is_empty = (like == 0) | torch.isneginf(like)
    is_read = (tokens.positions.to(device) >= 0)[:, None, None]
    if bool((is_lacking & ~is_empty & is_read).any()):
        raise _too_short(found.shape[-1], f"keys at columns up to {int(source.max())}", tokens.site)
    index = source.clamp(0, found.shape[-1] - 1)[:, None, :].expand(*like.shape)
    keeps_own = is_lacking | (positions < 0)[:, None, :]
    return torch.where(keeps_own, like, found.gather(-1, index).to(like.dtype))


def _refuse_if_short(columns: Tensor, n_columns: int, site: Site) -> None:
    if bool((columns < 0).any()) or bool((columns >= n_columns).any()):
        raise _too_short(n_columns, f"written at columns {int(columns.min())} to {int(columns.max())}", site)


def _too_short(n_columns: int, wanted: str, site: Site) -> InterventionMismatch:
    return InterventionMismatch(
        f"The donor is too short for the positions written at {site}.",
        got=f"donor of {n_columns} columns, {wanted}",
        because="a patch takes each token's value from the same position of the donor",
        instead="select positions that the donor has",
    )


def _misfit(tensor: Tensor, found: Tensor, like: Tensor, site: Site) -> ShapeError:
    return ShapeError(
        f"The donor does not fit {site}.",
        got=f"donor {list(tensor.shape)}, which gives {list(found.shape)} for the selected tokens",
        because=f"the selected tokens hold {list(like.shape)} ({' '.join(site.row.axes)})",
        instead="give [batch, pos, ...], one value a row, or one vector of the site's own width",
    )
