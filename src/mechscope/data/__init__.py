"""Prompt pairs and splits, as text and token ids; no model."""
