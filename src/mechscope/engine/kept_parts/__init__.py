"""Kept parts: runs in which some latents or experts are kept and the others carry what another run gives them."""
