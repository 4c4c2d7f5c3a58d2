"""Ways to find a circuit, one file each; importing this folder registers them."""
