"""Sparse products of a training step: what touches active latents only."""
