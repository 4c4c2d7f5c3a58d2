"""Processes that train together: each takes its rows of every batch, gradients are summed.

Owns: `Team`. Refuses nothing. Single-threaded processes that meet once a step lose less to a busy machine
than threads that meet at every operator.
Invariant: the mathematics of a step does not depend on how many processes share it.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process's place among those that share each step."""

    rank: int = 0
    size: int = 1

    def join(self, meeting_point: Path) -> None:
        """Meet the other processes; `meeting_point` is a file that does not exist yet."""
        if self.size > 1:
            torch.distributed.init_process_group(
                "gloo",
                init_method=meeting_point.resolve().as_uri(),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(hours=2),
            )

    def leave(self) -> None:
        """Part from the other processes, once all are done."""
        if self.size > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def rows(self, n_rows: int) -> slice:
        """Return the rows of a batch that this process takes."""
        each = -(-n_rows // self.size)
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.size == 1:
            return
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def sum_value(self, value: torch.Tensor) -> float:
        """Return the sum of a number over the processes."""
        total = value.detach().clone()
        if self.size > 1:
            torch.distributed.all_reduce(total)
        return total.item()
