"""Floor 11: the loop. Measure a behaviour, find its mechanism, claim it, test it, and report."""
