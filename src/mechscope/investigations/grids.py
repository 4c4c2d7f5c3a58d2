"""Grids: where a behaviour is carried, by patching streams, attention, MLPs and heads."""

from typing import Any

from mechscope.models.model import Model
from mechscope.patching.grid import patch_grid
from mechscope.patching.grid_result import PatchGrid


def draw_grids(model: Model, pairs: Any) -> dict[str, PatchGrid]:
    """The grids that a report shows: streams, attention and MLP by position, heads in both directions."""
    formed = {site.point for site in model.binding.formed}
    positions = "from-end" if pairs.clean.is_padded else "each"
    grids = {"residual stream": patch_grid(model, pairs, site="resid_pre", positions=positions)}
    grids["attention outputs"] = patch_grid(model, pairs, site="attn_out", positions=positions)
    if "mlp_out" in formed:
        grids["MLP outputs"] = patch_grid(model, pairs, site="mlp_out", positions=positions)
    if "z" in formed:
        grids["heads, denoising"] = patch_grid(model, pairs, site="z")
        grids["heads, noising"] = patch_grid(model, pairs, site="z", direction="noising")
    return grids
