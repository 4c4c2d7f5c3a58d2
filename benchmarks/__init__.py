"""Benchmarks: speed as ratios to a physical limit (`python -m benchmarks`), and the error rates of claims.

The floors of the library don't know this package; it may import all of them.
"""
