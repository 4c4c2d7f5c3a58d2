"""How good a dictionary is: reconstruction, losses, dark matter, absorption, probing, splitting, stability."""
