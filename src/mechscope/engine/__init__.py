"""Floor 4: the engine. Thousands of small causal experiments are one plan, executed with shared work."""
