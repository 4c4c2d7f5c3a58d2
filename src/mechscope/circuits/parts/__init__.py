"""Circuits of parts: some latents of dictionaries, or some experts of mixtures, kept and the others removed."""
