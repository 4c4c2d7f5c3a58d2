"""Node cells: from products of differences and gradients at a point to one number for each cell and pair."""

import torch
from torch import Tensor

from mechscope.engine.cells import GridLayout
from mechscope.vocabulary.sites import Site

_HEAD_AXES = ("head", "kv_head")


def difference(donor: Tensor, recipient: Tensor) -> Tensor:
    """What the donor's value changes; nothing at masked entries of scores, which are -inf in both."""
    found = donor.to(recipient) - recipient
    return torch.where(torch.isfinite(found), found, 0.0)


def by_component(product: Tensor, site: Site) -> Tensor:
    """Sums over what a node is made of: [batch, pos, head or unit], with one component for whole vectors."""
    axes = site.row.axes
    if site.row.is_attention_map:
        return product.sum(-1).transpose(1, 2)
    if site.point == "sink":
        return product.transpose(1, 2)
    if any(axis in _HEAD_AXES for axis in axes):
        return product.sum(-1)
    return product if axes[-1] in ("d_mlp", "expert") else product.flatten(2).sum(-1, keepdim=True)


def cells_of(found: Tensor, layout: GridLayout, masks: tuple[Tensor, ...]) -> Tensor:
    """Cells of one layer, [component, place, pair], from [batch, pos, component]."""
    if layout.component:
        found = found[..., [index or 0 for index in layout.indices]]
    selected = torch.stack(masks).to(found)
    return torch.einsum("pbs,bsc->cpb", selected, found)
