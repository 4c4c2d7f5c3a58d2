"""Floor 7: causal localisation by patching: grids over layers, positions, heads and neurons, and causal tracing."""
