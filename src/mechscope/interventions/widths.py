"""Widths: values, directions and subspaces that do not fit a site are refused before a run starts."""

from math import prod

from torch import Tensor

from mechscope.vocabulary.errors import InterventionMismatch, ShapeError
from mechscope.vocabulary.protocols import Facts
from mechscope.vocabulary.sites import Site


def refuse_other_direction(direction: Tensor, site: Site, facts: Facts) -> None:
    """Refuse a direction whose width is not the site's last axis.

    Raises:
        ShapeError: both widths are named.
    """
    axis = site.row.axes[-1]
    width = facts.axis_size(axis)
    if width is not None and direction.shape[-1] != width:
        raise ShapeError(
            f"The direction does not fit {site}.",
            got=f"width {direction.shape[-1]}",
            because=f"{site} has {axis} = {width}",
            instead="a direction found at a site of the same width",
        )


def refuse_other_value(value: Tensor, site: Site, facts: Facts) -> None:
    """Refuse a donor's tensor whose axes disagree with the site's, as far as they do not depend on the prompt.

    Raises:
        ShapeError: both shapes are named.
    """
    axes = _axes_of(value, site)
    sizes = [facts.axis_size(axis) for axis in axes]
    if any(size not in (None, n) for size, n in zip(sizes, value.shape, strict=True)):
        wanted = ", ".join(
            axis if size is None else f"{axis} = {size}" for axis, size in zip(axes, sizes, strict=True)
        )
        raise ShapeError(
            f"The donor does not fit {site}.",
            got=f"shape {list(value.shape)}",
            because=f"{site} has {wanted}",
            instead="a donor from the same site of a model of the same shape",
        )


def refuse_other_batch(value: Tensor, site: Site, facts: Facts) -> None:
    """Refuse a tensor given by row and column that has more rows than the batch, or other columns than a padded one.

    Raises:
        ShapeError: both shapes are named.
    """
    axes, n_rows, n_columns = _axes_of(value, site), facts.n_rows, facts.padded_columns
    if axes[0] == "batch" and n_rows is not None and value.shape[0] > n_rows:
        raise ShapeError(
            f"The donor for {site} has more rows than the batch.",
            got=f"{value.shape[0]} donor rows, {n_rows} prompts",
            because="row i of the donor is for prompt i",
            instead="one donor row a prompt, or a single one for all",
        )
    at = next((place for place, axis in enumerate(axes) if axis in ("pos", "query")), None)
    if at is not None and n_columns is not None and value.shape[at] not in (1, n_columns):
        raise ShapeError(
            f"The donor for {site} has other columns than the padded batch.",
            got=f"{value.shape[at]} columns, {n_columns} in the batch",
            because="a tensor's columns are taken as the batch's own, and padding stands before the tokens",
            instead="a run or its cache, which is matched by position, or the prompts one by one",
        )


def refuse_other_subspace(basis: Tensor, site: Site, facts: Facts) -> None:
    """Refuse a subspace as wide as neither the last axis nor all that a token carries.

    Raises:
        ShapeError: the widths are named.
    """
    sizes = [facts.axis_size(axis) for axis in _axes_at_a_token(site)]
    if None in sizes:
        return
    known = [size for size in sizes if size is not None]
    if basis.shape[-1] not in (known[-1], prod(known)):
        raise ShapeError(
            f"The subspace does not fit {site}.",
            got=f"rows of width {basis.shape[-1]}",
            because=f"a token carries {known} there",
            instead=f"rows of width {known[-1]} or {prod(known)}",
        )


def refuse_unusable_direction(direction: Tensor, at: str) -> None:
    """Refuse a direction that points nowhere.

    Raises:
        InterventionMismatch: zero, NaN or infinite.
    """
    if not isinstance(direction, Tensor):
        raise InterventionMismatch(
            f"The direction for {at} is no tensor.",
            got=type(direction).__name__,
            instead="torch.tensor(direction)",
        )
    length = float(direction.double().norm())
    if not 0 < length < float("inf"):
        raise InterventionMismatch(
            f"The direction for {at} points nowhere.",
            got=f"length {length}",
            because="it is scaled to length one before it is used",
            instead="a direction that is finite and not zero",
        )


def _axes_of(value: Tensor, site: Site) -> tuple[str, ...]:
    axes = site.row.axes
    if value.ndim == len(axes):
        return axes
    at_a_token = _axes_at_a_token(site)
    if value.ndim == len(at_a_token) + 1:
        return ("batch", *at_a_token)
    if value.ndim == len(at_a_token):
        return at_a_token
    raise ShapeError(
        f"The donor does not fit {site}.",
        got=f"shape {list(value.shape)}",
        because=f"{site} has the axes {' '.join(axes)}",
        instead=f"[{' '.join(axes)}], [batch {' '.join(at_a_token)}] or [{' '.join(at_a_token)}]",
    )


def _axes_at_a_token(site: Site) -> tuple[str, ...]:
    return tuple(axis for axis in site.row.axes if axis not in ("batch", "pos", "query"))
