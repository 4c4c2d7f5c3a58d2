"""Parts that do nothing that matters: they read whatever is there and write only where nobody else reads.

Owns: distractor heads (half of them look where a true head looks) and distractor neurons. They are the controls:
alive, different on clean and corrupt prompts, and of no effect. Invariant: what they write is in the "junk"
dimensions, which only distractors read, so no edge from one to anything true carries anything.
"""

from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.specimens.compiled.plan import Plan
from mechscope.specimens.compiled.weights import Head, Neurons, stack_neurons

LOOK, READ, WRITE = 2.0**-2, 2.0**-3, 2.0**-1


def draw_heads(plan: Plan, layer: int, *, true: list[Head], n: int) -> list[Head]:
    """Distractor heads of a layer: every second one looks where one of its true heads looks."""
    width = max([4, *(head.q.shape[0] for head in true)])
    heads = []
    for index in range(n):
        random = Random(f"mechscope compiled {plan.program.name} head {layer} {index}")
        v = READ * signs(random, width, plan.d_model)
        o = torch.zeros(plan.d_model, width, dtype=torch.float64)
        junk = plan.subspaces["junk"]
        o[junk] = WRITE * signs(random, junk.stop - junk.start, width) / width**0.5
        looks_like = true[(index // 2) % len(true)].padded(width) if index % 2 == 0 and true else None
        if looks_like is None:
            q, k = (LOOK * signs(random, width, plan.d_model) for _ in "qk")
            b_q = torch.zeros(width, dtype=torch.float64)
        else:
            q, k, b_q = looks_like.q, looks_like.k, looks_like.b_q
        heads.append(Head(q=q, b_q=b_q, k=k, v=v, o=o))
    return heads


def draw_neurons(plan: Plan, layer: int, *, n: int) -> Neurons:
    """Distractor neurons of a layer."""
    random = Random(f"mechscope compiled {plan.program.name} neurons {layer}")
    junk, rows = plan.subspaces["junk"], []
    for _ in range(n):
        writes = torch.zeros(plan.d_model, dtype=torch.float64)
        writes[junk] = WRITE * signs(random, 1, junk.stop - junk.start)[0]
        rows.append((READ * signs(random, 1, plan.d_model)[0], 0.5, writes))
    return stack_neurons(rows, plan.d_model)


def signs(random: Random, n_rows: int, n_columns: int) -> Float[Tensor, "row column"]:
    """Random signs from Python's own generator, equal on every machine."""
    bits = random.getrandbits(n_rows * n_columns)
    values = [2.0 * (bits >> index & 1) - 1.0 for index in range(n_rows * n_columns)]
    return torch.tensor(values, dtype=torch.float64).reshape(n_rows, n_columns)
