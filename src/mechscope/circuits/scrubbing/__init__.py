"""Causal scrubbing: does the output survive when everything that a hypothesis calls irrelevant is resampled?"""
