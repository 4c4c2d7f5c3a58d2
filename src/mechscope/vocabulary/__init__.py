"""Floor 0: the words of the field. Sites and points, errors, and the protocols between floors. Imports no torch."""
