"""Token memory: what a write heard at one site and needs at a later one of the same run, token by token.

Tokens are known by row and column, so that a packed replay, which computes only what changed, finds what the base run
told about the others. A token that is computed again takes the place of what it was.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.vocabulary.errors import SiteAfterStop
from mechscope.vocabulary.protocols import Tokens


@dataclass
class TokenMemory:
    """Values of tokens in one run.

    Args:
        what: Whose they are, for the refusal.
    """

    what: str
    table: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def put(self, tokens: Tokens, values: Tensor) -> None:
        """Keep values of tokens, [n_tokens, ...]."""
        rows, columns = tokens.rows.to(values.device), tokens.columns.to(values.device)
        table = self.table.detach().to(values)
        n_rows = max(len(table), int(rows.max()) + 1)
        n_columns = max(table.shape[1] if table.numel() else 0, tokens.n_columns)
        if (n_rows, n_columns) != tuple(table.shape[:2]):
            grown = values.new_full((n_rows, n_columns, *values.shape[1:]), torch.nan)
            if table.numel():
                grown[: len(table), : table.shape[1]] = table
            table = grown
        self.table = table.index_put((rows, columns), values)

    def of(self, tokens: Tokens) -> Tensor:
        """Values of tokens.

        Raises:
            SiteAfterStop: nothing was heard in this run.
        """
        if self.table.numel() == 0:
            raise SiteAfterStop(
                "What an intervention listens to is not computed in this run.",
                got=self.what,
                because="the run starts behind it",
                instead="a run that starts earlier",
            )
        return self.table[tokens.rows.to(self.table.device), tokens.columns.to(self.table.device)]
