"""Resampling (Bricken et al. 2023): dead latents start again from tokens that are reconstructed badly."""

from typing import TYPE_CHECKING

import torch

from mechscope.dictionaries.training.objective import Outcome
from mechscope.records.seeds import seed_for

if TYPE_CHECKING:
    from mechscope.dictionaries.training.learner import Learner

_SMALLER = {"relu": 0.2, "gated": 0.2}
"""Norm of a new encoder row, as a fraction of the living ones' mean; whole where latents compete by size."""


def resample(learner: "Learner", outcome: Outcome, step: int) -> int:
    """Re-initialise the dead: the decoder points at a token's error, drawn with probability in its squared size.

    The encoder points there too; where another site is read, at that token's input less the mean. Optimiser state of
    what is re-initialised is cleared. Which tokens are drawn depends on seed and step only. Dictionaries of one block.

    Returns:
        How many were re-initialised.
    """
    learner.look_for_dead()
    dead = learner.dead
    if len(dead) == 0:
        return 0
    error = outcome.target - outcome.written
    generator = torch.Generator().manual_seed(seed_for(learner.training.seed, "resample", step))
    weights = error.pow(2).sum(1).double().cpu()
    drawn = torch.multinomial(weights, len(dead), replacement=True, generator=generator).to(error.device)
    rows = _unit(error[drawn])
    taken = rows
    if not learner.settings.applies_b_dec_to_input:
        taken = _unit((outcome.inputs - outcome.inputs.mean(0))[drawn])
    with torch.no_grad():
        for name, values in _new_values(learner, rows, taken).items():
            if name in learner.params:
                learner.params[name][dead] = values
                for moment in learner.optimizer.state.get(learner.params[name], {}).values():
                    if moment.ndim:
                        moment[dead] = 0
        learner.state["since_fired"][dead] = 0
    learner.look_for_dead()
    return len(dead)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _new_values(learner: "Learner", rows: torch.Tensor, taken: torch.Tensor) -> dict[str, torch.Tensor]:
    living = torch.ones(learner.settings.n_latents, dtype=torch.bool, device=rows.device)
    living[learner.dead] = False
    zeros = rows.new_zeros(len(rows))
    new = {"dec.0": rows} | {f"{name}.0": zeros for name in ("b_enc", "b_gate", "b_mag", "r_mag")}
    if "enc.0" in learner.params:
        norms = learner.params["enc.0"][living].norm(dim=1)
        new["enc.0"] = (
            taken * _SMALLER.get(learner.settings.gate.rule, 1.0) * (norms.mean() if len(norms) else 1.0)
        )
    return new
