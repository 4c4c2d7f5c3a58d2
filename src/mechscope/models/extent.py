"""Extent: the part of the forward pass that a run covers, from a layer's input to the last site computed.

Owns: what a pattern means inside a part of the pass, and the refusal of sites that lie outside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mechscope.models import resources
from mechscope.models.binding import Binding
from mechscope.models.cache import Name
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import ShapeError, SiteAfterStop
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site, is_pattern

if TYPE_CHECKING:
    import mechscope.models.model


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What a run covers.

    Args:
        binding: The model bound to its sites.
        first_layer: The layer that it starts from; None is the whole model from the tokens on.
        stop: The last site to compute; None is to the logits.
    """

    binding: Binding
    first_layer: int | None
    stop: Site | None

    @property
    def first(self) -> Site | None:
        """The site whose value a run that starts late is given."""
        return None if self.first_layer is None else Site("resid_pre", self.first_layer)

    def sites_of(self, capture: str | Site | Sequence[str | Site]) -> list[Site]:
        """The sites that are asked for, in the order of the forward pass; a pattern means those inside.

        Raises:
            PointUnavailable, UnknownSite: a name that this model does not form.
            SiteAfterStop: an explicit site outside.
        """
        names = [capture] if isinstance(capture, str | Site) else list(capture)
        sites: set[Site] = set()
        for name in names:
            found = self.binding.select(name)
            if isinstance(name, str) and is_pattern(name):
                found = [site for site in found if resources.in_default(name, site) and self._holds(site)]
            else:
                self._refuse_outside(name, found[0])
            sites.update(found)
        return sorted(sites)

    def refuse_writes_before_it(self, writes: Sequence[tuple[Write, list[Site]]]) -> None:
        """Refuse writes to what is not computed because the run starts later.

        Raises:
            SiteAfterStop
        """
        for write, sites in writes:
            if self.first is not None and sites and max(sites) < self.first:
                raise SiteAfterStop(
                    f"An intervention at {write.at} lies before the place where the run starts.",
                    got=f"{write.at}, start at {self.first}",
                    because=f"nothing before {self.first} is computed, so it would have no effect",
                    instead="leave it out, or start earlier",
                )

    def _holds(self, site: Site) -> bool:
        return (self.stop is None or site <= self.stop) and (self.first is None or site >= self.first)

    def _refuse_outside(self, name: str | Site, site: Site) -> None:
        if self.stop is not None and site > self.stop:
            raise SiteAfterStop(
                f"{site} lies behind the place where the run stops.",
                got=f"capture {name!r}, stop_after {self.stop}",
                because=f"the run ends once {self.stop} is computed",
                instead=f'stop_after="{site}", or leave the site out',
            )
        if self.first is not None and site < self.first:
            raise SiteAfterStop(
                f"{site} lies before the place where the run starts.",
                got=f"capture {name!r}, start at {self.first}",
                because=f"nothing before {self.first} is computed",
                instead="leave the site out, or start earlier",
            )


def start_of(
    model: "mechscope.models.model.Model", start: tuple[Name, Tensor], batch: TokenBatch
) -> tuple[int, Tensor]:
    """The layer that a run starts from, and the value that it is given, [batch, pos, d_model], in the model's dtype.

    Raises:
        SiteAfterStop: not a layer's input.
        ShapeError: a value that does not fit these prompts.
    """
    site = model.binding.site(start[0])
    if site.point != "resid_pre" or site.layer is None:
        raise SiteAfterStop(
            "A run starts from a layer's input.",
            got=str(site),
            instead=f'start=("resid_pre.{site.layer or 0}", value)',
        )
    if start[1].shape != (*batch.shape, model.d_model):
        raise ShapeError(
            f"The value to start from does not fit {site}.",
            got=f"shape {list(start[1].shape)}",
            because=f"the prompts need {[*batch.shape, model.d_model]}: batch, pos, d_model",
            instead=f'a run\'s cache["{site}"] of prompts of the same lengths',
        )
    return site.layer, start[1].to(model.dtype)
