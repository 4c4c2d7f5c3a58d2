"""One tree of seeds: each random thing has its own seed, found by its name and not by its turn.

Invariant: a seed depends on the root and the path only, so order of execution, number of workers and
what else was drawn change nothing. Refuses a path of anything but text and whole numbers.
"""

import hashlib

import numpy as np

from mechscope.records.canonical import canonical_json
from mechscope.vocabulary.errors import NotSerializable


def seed_for(root: int, *path: str | int) -> int:
    """The seed of one random thing: `seed_for(0, "controls", "random heads", 17)`.

    Args:
        root: The user's seed.
        path: From the general to the particular. 1 and "1" are different steps.

    Returns:
        0 to 2**63 - 1; good for torch, NumPy and Python. For a library that takes 32 bits: `% 2**32`.
    """
    for step in (root, *path):
        if type(step) not in (str, int):
            raise NotSerializable(
                "A step in the tree of seeds is text or a whole number.",
                got=repr(step),
                because="True would be the same step as 1, and a float depends on how it was rounded",
                instead="a name or an index",
            )
    digest = hashlib.sha256(canonical_json([root, *path]).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(root: int, *path: str | int) -> np.random.Generator:
    """A fresh NumPy generator, seeded by `seed_for(root, *path)`."""
    return np.random.default_rng(seed_for(root, *path))
