"""Prompt pairs and splits, as text and token ids, and what is resampled of them; no model."""
