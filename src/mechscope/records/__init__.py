"""Floor 1: the saved form of results: atomic files, canonical JSON, fingerprints, records, seeds."""
