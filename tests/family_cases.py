"""What the contract suites share: opened tiny models, a padded batch, and comparisons of points."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from arithmetic_forward import Arithmetic
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.points import POINTS
from mechscope.vocabulary.sites import Site
from nudge import nudge_table_axes
from tiny_models import TINY, VOCABULARY, tiny

FAMILIES = tuple(TINY)
N_LAYERS = 3


@cache
def opened(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """A tiny model of a family; opened once for all tests, which is a test of leaving it as found."""
    return wrap(tiny(name, dtype), check=False)


@cache
def oracle(name: str) -> Arithmetic:
    return Arithmetic(opened(name).hf)


def rows(n: int = 2, *, is_padded: bool = True) -> TokenBatch:
    """n prompts, longer than the windows of `tiny_models`; every second one shorter, so that it is padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=generator).tolist()
    long, short = ids[0], ids[1][:6]
    return batch_of([short if is_padded and i % 2 else long for i in range(n)], pad_id=0)


def formed_points(name: str) -> list[str]:
    return sorted({site.point for site in opened(name).binding.formed}, key=list(POINTS).index)


def cases() -> list[tuple[str, str]]:
    """Every family with every point that it forms and that can be written."""
    return [(name, point) for name in FAMILIES for point in formed_points(name) if POINTS[point].is_writable]


def sites_of(name: str) -> list[Site]:
    """Every writable site of a family, all layers."""
    return [site for site in opened(name).binding.formed if site.row.is_writable]


def difference(site: Site, got: Tensor, wanted: Tensor, batch: TokenBatch, row: int | None = None) -> float:
    """Largest absolute difference over real tokens; infinite where masked entries or shapes disagree."""
    if got.shape != wanted.shape:
        return float("inf")
    if "query" in site.row.axes:
        got, wanted = got.transpose(1, 2), wanted.transpose(1, 2)
    real = batch.mask.bool()
    if row is not None:
        got, wanted, real = got[row], wanted[row], real[row]
    got, wanted = got.detach()[real], wanted.detach()[real]
    if not wanted.is_floating_point():
        return float((got != wanted).sum())
    masked = torch.isinf(wanted)
    if not torch.equal(masked, torch.isinf(got)):
        return float("inf")
    return float((got[~masked] - wanted[~masked]).abs().max())


def edit_of_row(name: str, site: Site, row: int, batch: TokenBatch) -> Callable[[Tensor], Tensor]:
    """The edit of one row that equals `Nudge(site)` there; masked entries ignore writes to a map."""

    def edit(value: Tensor) -> Tensor:
        new = nudge_table_axes(str(site), value)
        if site.row.is_attention_map and site.layer is not None:
            new = torch.where(oracle(name).visible(site.layer), new, value)
        chosen = (torch.arange(len(batch)) == row).reshape(-1, *[1] * (value.ndim - 1))
        return torch.where(chosen, new, value)

    return edit
