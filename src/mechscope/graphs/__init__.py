"""Floor 8: attribution graphs of a local replacement model: build, prune, intervene, exchange, view."""
