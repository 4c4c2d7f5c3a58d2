"""Matching pursuit: k steps, each takes the latent whose direction explains most of what is left."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def pursue(
    values: Float[Tensor, "token d"],
    atoms: Float[Tensor, "latent d"],
    *,
    k: int,
    stop_at: float = 0.0,
    stops_at_repeat: bool = False,
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """Coefficients and latents of k steps of greedy pursuit; a latent may be taken more than once.

    The step's coefficient is the least-squares one, so atoms need not have unit norm, and a scaled dictionary
    gives scaled coefficients for the same choice. A token whose residual norm is at most `stop_at` takes no
    more steps: its coefficients are zero from there on. With `stops_at_repeat` neither does a token whose last step
    took no new latent.

    Cost: one [token, latent] product, then k row updates through the atoms' Gram matrix, formed row by row.
    """
    norms = atoms.norm(dim=-1).clamp_min(torch.finfo(atoms.dtype).tiny)
    residual = values
    coefficients: list[Tensor] = []
    latents: list[Tensor] = []
    is_going = torch.ones(len(values), dtype=torch.bool, device=values.device)
    taken = torch.zeros(
        len(values), len(atoms) if stops_at_repeat else 0, dtype=torch.bool, device=values.device
    )
    for _ in range(k):
        is_left = is_going & (residual.norm(dim=-1) > stop_at)
        # Which latent to take is a choice: no gradient goes through it.
        with torch.no_grad():
            chosen = (residual @ atoms.T / norms).argmax(-1)
        rows, size = atoms[chosen], norms[chosen]
        step = ((residual * rows).sum(-1) / size**2).relu() * is_left
        residual = residual - step[:, None] * rows
        if stops_at_repeat:
            is_going = is_left & (step > 0) & ~taken.gather(1, chosen[:, None])[:, 0]
            taken = taken.scatter(1, chosen[:, None], True)
        coefficients.append(step)
        latents.append(chosen)
    return torch.stack(coefficients, -1), torch.stack(latents, -1)
