"""What attribution to latents and to experts have in common: checks, and gradients at sites of a block of pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechscope.attribution.blocks import Block, refuse_other_vocabulary
from mechscope.attribution.holding import Writer
from mechscope.attribution.linearization import Linearization, plain, relp
from mechscope.attribution.passes import Request, refuse_flat_metric, run_backward, run_plain
from mechscope.attribution.paths import Paths
from mechscope.attribution.settings import Direction, NodeSettings, refuse_unknown
from mechscope.engine.kept_parts.run import Ablation
from mechscope.engine.pairs import Pairs, metric_facts, refuse_unless_pairs
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.sites import Site

METHODS = ("attribution", "ig", "relp")
ABLATIONS = ("resample", "mean", "zero")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an attribution to parts is asked for.

    Args:
        method: "attribution", "ig" or "relp".
        direction: "noising" takes the gradient in the clean run, "denoising" in the corrupt one.
        removed: What parts that are exchanged carry.
        settings: Steps and what gradients see.
        writers: More that is written in the run where the gradient is taken, by site.
    """

    method: str
    direction: Direction
    removed: Ablation
    settings: NodeSettings
    writers: Mapping[Site, Writer] = field(default_factory=dict)

    @property
    def linearization(self) -> Linearization:
        """What gradients see."""
        return self.settings.linearization or (relp() if self.method == "relp" else plain())

    def refuse_unless_sound(self, model: Model, behavior: Pairs) -> None:
        """Refuse unknown words, prompts that do not line up, and conventions that do not fit together.

        Raises:
            BadPairs, PairLengthMismatch, InterventionMismatch
        """
        refuse_unless_pairs(behavior)
        refuse_unknown("method of attribution to parts", self.method, METHODS)
        refuse_unknown("direction", self.direction, ("denoising", "noising"))
        refuse_unknown("ablation", self.removed, ABLATIONS)
        refuse_other_vocabulary(model, behavior)
        if self.direction == "denoising" and self.removed != "resample":
            raise InterventionMismatch(
                "Denoising gives parts the clean run's values, and no constants.",
                got=f'direction="denoising", removed={self.removed!r}',
                instead='removed="resample", or direction="noising"',
            )

    def to_json(self, behavior: Pairs) -> dict[str, Any]:
        """For records."""
        said: dict[str, Any] = {"method": self.method, "direction": self.direction, "removed": self.removed}
        said |= {"linearization": self.linearization.to_json(), "metric": metric_facts(behavior.metric)}
        if self.method == "ig":
            said |= {"steps": self.settings.steps, "rule": self.settings.rule}
        return said | {"n_pairs": len(behavior.clean)}


def gradients_at(
    model: Model, block: Block, asked: Asked, ends: Mapping[Site, tuple[Tensor, Tensor]]
) -> dict[Site, Tensor]:
    """The metric's gradient at sites, in the run where parts are exchanged or averaged on the way to the exchange.

    Args:
        model: An open model.
        block: Pairs.
        asked: What is wanted.
        ends: By site, its value in that run, and with everything exchanged.

    Raises:
        NoGradient: the metric's gradient is zero.
    """
    recipient = block.clean if asked.direction == "noising" else block.corrupt
    if asked.method != "ig":
        request = Request(at=tuple(ends), linearization=asked.linearization, writers=asked.writers)
        found = run_backward(model, recipient, block.metric, request)
        refuse_flat_metric(block.metric, [found])
        return found.gradients
    paths = Paths(
        model=model,
        prompts=recipient,
        metric=block.metric,
        steps=asked.settings.steps,
        rule=asked.settings.rule,
        linearization=asked.linearization,
        n_at_once=block.n_at_once,
    )
    starts = {site: Site("resid_pre", site.layer) for site in ends}
    arriving = run_plain(model, recipient, list(starts.values()))
    gradients: dict[Site, Tensor] = {}
    passes: list[Any] = []
    for site, (own, exchanged) in ends.items():
        both = (exchanged, own) if asked.direction == "noising" else (own, exchanged)
        gradients[site], some = paths.gradient(site, both, arriving[starts[site]], writers=asked.writers)
        passes += some
    refuse_flat_metric(block.metric, passes)
    return gradients


def real_tokens(tensor: Tensor, mask: Tensor) -> Tensor:
    """Real tokens of a tensor [batch, pos, ...]: [n_tokens, ...]."""
    return tensor[mask.to(tensor.device)]


def add_effects(sums: dict[str, Tensor], name: str, found: Tensor) -> None:
    """Add a block's effects, summed over its tokens."""
    found = found.detach().to(torch.float64).cpu()
    sums[name] = sums[name] + found if name in sums else found
