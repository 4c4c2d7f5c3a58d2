"""Floor 5: looking without intervening: logit lens, direct logit attribution, attention patterns, head scores."""
