"""From what the logits read to a metric, for many circuits over the same prompts at once."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.interventions.metrics import Metric


@dataclass
class Measuring:
    """A metric of some prompts under several circuits.

    Args:
        metric: One answer a prompt.
        n_rows: Prompts.
        head: Residual stream, and columns or None, to logits.
    """

    metric: Metric
    n_rows: int
    head: Callable[..., Tensor]
    _repeated: dict[int, tuple[Metric, Tensor | None, Tensor | None]] = field(default_factory=dict)

    def of(self, residual: Tensor) -> Tensor:
        """The metric from the stream that the logits read, [circuit, reads, d_model] to [circuit, row]."""
        n_circuits, _, width = residual.shape
        metric, unique, places = self._for(n_circuits)
        stream = residual.reshape(n_circuits * self.n_rows, -1, width)
        if unique is None or places is None:
            logits = self.head(stream)
        else:
            logits = self.head(stream, unique.to(stream.device))
            places = places.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
            logits = logits.gather(-1, places)
        return metric.measure(logits).reshape(n_circuits, self.n_rows)

    def logits(self, residual: Tensor) -> Tensor:
        """All logits at the positions read, [circuit, row, read, d_vocab]."""
        found = self.head(residual.reshape(residual.shape[0] * self.n_rows, -1, residual.shape[-1]))
        return found.unflatten(0, (residual.shape[0], self.n_rows))

    def _for(self, n_circuits: int) -> tuple[Metric, Tensor | None, Tensor | None]:
        # A metric's reading is built from lists of answers, so it is built once for each number of circuits.
        if n_circuits not in self._repeated:
            if len(self._repeated) > 32:
                self._repeated.clear()
            metric = self.metric.select(list(range(self.n_rows)) * n_circuits)
            columns = metric.reading().columns
            unique = places = None
            if columns is not None:
                unique, places = torch.unique(columns, return_inverse=True)
            self._repeated[n_circuits] = (metric, unique, places)
        return self._repeated[n_circuits]
