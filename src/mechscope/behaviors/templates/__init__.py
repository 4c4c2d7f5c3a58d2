"""Behaviours for any model: importing this folder offers them."""

from mechscope.behaviors.templates import countries, grammar, invented_names, people, repeats, years

__all__ = ["countries", "grammar", "invented_names", "people", "repeats", "years"]
