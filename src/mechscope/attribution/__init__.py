"""Floor 7: first-order attribution to nodes and edges: attribution patching, AtP*, relevance, integrated gradients."""
