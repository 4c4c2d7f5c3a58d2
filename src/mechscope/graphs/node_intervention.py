"""NodeIntervention: what scaling nodes did: the change that the graph foretells beside the change measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechscope.figures.prose import Table
from mechscope.graphs.modes import Mode


@dataclass(frozen=True, eq=False, kw_only=True)
class NodeIntervention:
    """What scaling nodes did.

    Args:
        mode: Which parts were held.
        factors: By node name, what its value was multiplied with.
        nodes: Indices of the latents and logits that were read.
        names: Their names; a logit's label.
        before: What each read before, [n].
        predicted: Change that the graph foretells: direct effects where all is held, effects along all paths else.
        measured: Change measured.
    """

    mode: Mode
    factors: Mapping[str, float]
    nodes: tuple[int, ...]
    names: tuple[str, ...]
    before: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"]
    measured: Float[np.ndarray, " n"]

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and measured changes; NaN where either does not vary."""
        a, b = self.predicted - self.predicted.mean(), self.measured - self.measured.mean()
        size = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / size if size > 0 else float("nan")

    @property
    def unexplained(self) -> float:
        """Squared difference of predicted and measured over squared measured change; 0 is exact."""
        change = float((self.measured**2).sum())
        return float(((self.predicted - self.measured) ** 2).sum()) / change if change > 0 else float("nan")

    def logits(self) -> dict[str, tuple[float, float]]:
        """(predicted, measured) change of each target."""
        return {
            name: (float(self.predicted[i]), float(self.measured[i]))
            for i, name in enumerate(self.names)
            if name.startswith("logit ")
        }

    def table(self, n: int = 20) -> Table:
        """The n nodes that moved most: what each read, and its change as foretold and as measured."""
        rows = [
            (self.names[i], *(float(column[i]) for column in (self.before, self.predicted, self.measured)))
            for i in self._strongest(n)
        ]
        return Table(("node", "before", "predicted change", "measured change"), rows)

    def plot(self) -> Any:
        """Plotly figure: measured over predicted change, latents and logits apart; on the line, the graph was right."""
        import plotly.graph_objects as go

        figure = go.Figure()
        is_logit = np.array([name.startswith("logit ") for name in self.names])
        for kind, mine in (("latent", ~is_logit), ("logit", is_logit)):
            figure.add_scatter(
                x=self.predicted[mine],
                y=self.measured[mine],
                mode="markers",
                name=kind,
                text=[name for name, shown in zip(self.names, mine, strict=True) if shown],
            )
        most = float(np.abs(np.concatenate([self.predicted, self.measured])).max(initial=0.0))
        figure.add_scatter(
            x=[-most, most], y=[-most, most], mode="lines", name="as foretold", hoverinfo="skip"
        )
        figure.update_xaxes(title="predicted change")
        figure.update_yaxes(title="measured change")
        figure.update_layout(title=self._title)
        return figure

    @property
    def _title(self) -> str:
        return f"{', '.join(f'{k} x{v:g}' for k, v in self.factors.items())} ({self.mode})"

    def _strongest(self, n: int) -> list[int]:
        return np.argsort(-np.abs(self.measured), kind="stable")[:n].tolist()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        lines = [
            f"  {self.names[i]:<28} {self.before[i]:>10.4g} {self.predicted[i]:>+11.4g} {self.measured[i]:>+11.4g}"
            for i in self._strongest(10)
        ]
        columns = f"  {'node':<28} {'before':>10} {'predicted':>11} {'measured':>11}"
        return "\n".join([f"NodeIntervention of {self._title}", columns, *lines])
