"""Floor 4: activations in bulk: from a model over a corpus, or from a store on disk."""
