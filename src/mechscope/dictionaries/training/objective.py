"""Objective: the loss of one step, the same for every architecture and kind.

Mean squared error of the normalised target, so that 1 is a dictionary of nothing; plus what the architecture's
sparsity costs; plus AuxK: the dead latents that come nearest learn to reconstruct what the living leave over. The
error is detached, `b_dec` is not added to it, and the auxiliary loss reaches encoder and decoder alike.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechscope.dictionaries.architectures.base import View
from mechscope.dictionaries.blocks import Block

if TYPE_CHECKING:
    from mechscope.dictionaries.training.learner import Learner, Moment


@dataclass
class Outcome:
    """What one step computed; tensors, so that nobody waits for them.

    Args:
        loss: All of it.
        written: The reconstruction, normalised, detached.
        target: What it is held to.
        inputs: What was read, normalised.
        n_active: Active latents, all rows together.
    """

    loss: Tensor
    written: Tensor
    target: Tensor
    inputs: Tensor
    n_active: Tensor

    def fvu(self) -> Tensor:
        """Fraction of variance unexplained, pooled over the batch."""
        total = (self.target - self.target.mean(0)).pow(2).sum()
        return (self.target - self.written).pow(2).sum() / total

    def l0(self) -> Tensor:
        """Active latents per row."""
        return self.n_active / len(self.target)


def compute_outcome(learner: "Learner", x: Tensor, y: Tensor, moment: "Moment") -> Outcome:
    """The loss of one batch, with gradients for every parameter of the learner."""
    config = learner.job.config
    views = learner.views(x, moment)
    loss = y.new_zeros(())
    nested: list[Tensor] = []
    extras: list[tuple[float, Tensor]] = []
    counts: list[Tensor] = []
    for block, view in zip(learner.blocks, views, strict=True):
        fired = config.fire(view)
        learner.keep_buffers(view, block.index)
        counts.append(fired.active.count_by_latent(fired.values.detach() != 0))
        parts = [_placed(learner, part, block) for part in config.parts(view, fired)]
        nested = [a + b for a, b in zip(nested, parts, strict=True)] if nested else parts
        if fired.penalty is not None:
            loss = loss + fired.penalty
        more = [(weight, _placed(learner, extra, block)) for weight, extra in fired.extra]
        extras = [(w, a + b) for (w, a), (_, b) in zip(extras, more, strict=True)] if extras else more
    base = learner.params["b_dec"]
    if learner.settings.has_skip:
        base = base + x @ learner.params["W_skip"].T
    written, error = base, y.new_zeros(())
    for part in nested:
        written = written + part
        error = error + (written - y).pow(2).mean()
    loss = loss + error / len(nested)
    for weight, extra in extras:
        loss = loss + weight * (extra + base.detach() - y).pow(2).mean()
    count = torch.cat(counts)
    _note_firing(learner, count, len(x))
    if len(learner.dead) and learner.training.revival.aux_k:
        loss = loss + _auxiliary(learner, views, (y - written).detach())
    return Outcome(loss, written.detach(), y, x, count.sum())


def _note_firing(learner: "Learner", count: Tensor, n_rows: int) -> None:
    since = learner.state["since_fired"]
    learner.state["since_fired"] = torch.where(count > 0, 0.0, since + n_rows)


def _auxiliary(learner: "Learner", views: list[View], left: Tensor) -> Tensor:
    revival = learner.training.revival
    n = max(1, int(len(left) * revival.aux_share))
    left = left[:n]
    loss = left.new_zeros(())
    for block, view in zip(learner.blocks, views, strict=True):
        mine = learner.dead_in(block)
        k = min(revival.aux_k, len(mine))
        if k == 0 or learner.job.config.ties_encoder:
            continue
        active = view.encoder.among(mine, k, n)
        wanted = left if block.sites is None else left[:, columns_of(learner, block)]
        written = active.decode(active.pre.relu(), view.decoder)
        size = (wanted - wanted.mean(0)).pow(2).mean().clamp_min(torch.finfo(left.dtype).tiny)
        loss = loss + revival.aux_weight * (written - wanted).pow(2).mean() / size * (k / revival.aux_k)
    return loss


def columns_of(learner: "Learner", block: Block) -> Tensor:
    """Columns of the long written vector that a cross-layer block writes."""
    assert block.sites is not None
    width = learner.settings.writes[0].width
    return torch.cat([torch.arange(s * width, (s + 1) * width, device=learner.device) for s in block.sites])


def _placed(learner: "Learner", part: Tensor, block: Block) -> Tensor:
    if block.sites is None:
        return part
    whole = part.new_zeros(len(part), learner.settings.d_out)
    return whole.index_add(1, columns_of(learner, block), part)
