"""interchange_grid: the same interchange at every layer and position, or head: where else would it work?

The control of other places, and the search for one; what is found there is tested on other examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.interchange import Interchanging
from mechscope.circuits.abstraction.interchanges import draw_interchanges
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.result import Share, share_of
from mechscope.circuits.abstraction.swapping import Alignment, answers_under
from mechscope.engine.cells import GridLayout, lay_out_grid
from mechscope.figures.labelled import Label, LabelledArray
from mechscope.models.model import Model
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.where import PerRow


class InterchangeGridRecord(Record):
    """A saved `InterchangeGrid`."""

    kind: ClassVar[str] = "interchange-grid"


@dataclass(frozen=True, kw_only=True, eq=False)
class InterchangeGrid:
    """Result of `interchange_grid`.

    Args:
        iia: Interchange intervention accuracy by cell, with 95% intervals.
        decisive: The same over decisive pairs only.
        untouched: [all, decisive] IIA when nothing is patched: what a place without effect gives.
        settings: JSON.
        model: Which weights.
        data_sha256: Hash of the prompts and of which were put together.
    """

    iia: LabelledArray
    decisive: LabelledArray
    untouched: tuple[float, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def top(self, k: int = 10) -> list[tuple[dict[str, Label], float]]:
        """The k cells of highest IIA over decisive pairs."""
        return self.decisive.top(k, "largest")

    def plot(self) -> Any:
        """A Plotly figure: IIA over decisive pairs, where a place without effect is at 0."""
        return self.decisive.plot()

    def save(self, path: str | Path) -> None:
        """Write a record."""
        InterchangeGridRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={
                "iia": self.iia.to_json(),
                "decisive": self.decisive.to_json(),
                "untouched": list(self.untouched),
            },
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "InterchangeGrid":
        """Read what `save` wrote."""
        record = InterchangeGridRecord.load(path)
        numbers = record.numbers
        return cls(
            iia=LabelledArray.from_json(numbers["iia"]),
            decisive=LabelledArray.from_json(numbers["decisive"]),
            untouched=tuple(numbers["untouched"]),
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def __repr__(self) -> str:
        every, only = self.untouched
        return (
            f"InterchangeGrid; nothing patched: {every:.3f}, of decisive pairs {only:.3f}\n{self.decisive!r}"
        )

    def _repr_html_(self) -> str:
        return self.decisive._repr_html_()


def interchange_grid(
    model: Model,
    high: CausalModel,
    *,
    variable: str,
    examples: Examples,
    site: str = "resid_post",
    positions: Any = None,
    settings: Interchanging | None = None,
) -> InterchangeGrid:
    """Interchange one variable at every cell of a grid.

    Args:
        model: An open model.
        high: What we believe it computes.
        variable: Which variable.
        examples: Bases and sources.
        site: As in `patch_grid`: "resid_post", "mlp_out" (layer x position), "z" (layer x head), "z.9".
        positions: As in `patch_grid`; None is "each" for whole vectors, "all" for heads.
        settings: Pairs, how the answer is read, seed.

    Raises:
        What `interchange` and `patch_grid` raise.

    Cost: one experiment a cell and pair, as one plan; one forward pass over the sources.
    Caveat: a search over many cells finds a high one by chance; test it with `interchange` on other examples.
    """
    settings = settings or Interchanging()
    layout = lay_out_grid(
        model, site, batches=(examples.prompts, examples.prompts), positions=positions, units=None
    )
    pairs = draw_interchanges(
        high,
        examples,
        variables=(variable,),
        n=settings.n_pairs,
        seed=settings.seed,
        decisive=settings.decisive,
    )
    alignments: list[Alignment] = [{}, *({variable: place} for place in _cells(layout))]
    answers = answers_under(model, pairs, alignments=alignments, choice=settings.choice)
    hits = answers == pairs.labels
    decisive = pairs.decisive
    stated = {
        **asdict(settings),
        "n_pairs": len(pairs),
        "variable": variable,
        "site": site,
        "positions": layout.places.described,
        "causal_model": high.to_json(),
    }
    every = np.ones(len(pairs), dtype=bool)
    return InterchangeGrid(
        iia=_labelled(layout, [share_of(row, pairs.units, among=every) for row in hits[1:]], stated),
        decisive=_labelled(layout, [share_of(row, pairs.units, among=decisive) for row in hits[1:]], stated),
        untouched=(float(hits[0].mean()), float(hits[0][decisive].mean())),
        settings=stated,
        model=model.fingerprint,
        data_sha256=pairs.data_sha256,
    )


def _cells(layout: GridLayout) -> Sequence[Place]:
    """One place a cell, in the order of the grid."""
    places: list[Place] = []
    for site, index, selection in product(layout.sites, layout.indices, layout.places.selections):
        if isinstance(selection, PerRow) or not (selection is None or isinstance(selection, tuple)):
            raise InterventionMismatch(
                "A grid of interchanges needs positions that are the same in every prompt.",
                got=repr(selection),
                because="a base and its source are any two of the examples",
                instead="indices, or ms.interchange with a place whose positions are a function of the setting",
            )
        chosen: dict[str, Any] = {}
        if index is not None:
            chosen = {"units" if layout.component == "unit" else "heads": index}
        places.append(Place.of(str(site), positions=selection, **chosen))
    return places


def _labelled(layout: GridLayout, shares: Sequence[Share], settings: Mapping[str, Any]) -> LabelledArray:
    coords = layout.coords
    shape = tuple(len(labels) for labels in coords.values())

    def table(values: list[float]) -> np.ndarray:
        return np.array(values).reshape(shape)

    return LabelledArray(
        table([share.value for share in shares]),
        tuple(coords),
        coords=coords,
        texts={"pos": layout.places.texts} if layout.places.texts else {},
        unit="IIA",
        title=f"interchange of {settings['variable']} at {settings['site']}",
        conventions={"pairs": settings["n_pairs"], "choice": settings["choice"]},
        low=table([share.interval.low for share in shares]),
        high=table([share.interval.high for share in shares]),
    )
