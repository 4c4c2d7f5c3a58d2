"""Ways of training a dictionary: one small file each, with its settings and its loss."""
