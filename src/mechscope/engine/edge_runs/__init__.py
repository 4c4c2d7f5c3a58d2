"""Edge runs: forward passes in which each reader sees some writers' own outputs and other values of the rest."""
