"""Floor 10: a statement about a mechanism, its predictions, its controls, and the held-out verdict."""
