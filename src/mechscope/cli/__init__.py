"""Floor 12: the command line. Thin: parse, call one function, render."""
