"""Floor 3: interventions and metrics as values, and their meaning as pure functions on a tensor."""
