"""Circuits: which edges of a model carry a behaviour. Found, evaluated against controls, drawn and kept."""
