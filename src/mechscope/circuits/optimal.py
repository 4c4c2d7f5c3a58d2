"""Optimal ablation: the constants that removed edges carry, learned so that a circuit does as well as it can.

What is left of the loss is then due to the information that is gone, not to values the model has never seen.
"""

import torch

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions, kl_to_model, split_to_search
from mechscope.engine.edge_runs.ablations import Constant, mean_of
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.intervention import Value
from mechscope.models.model import Model


def learn_constants(
    model: Model,
    behavior: Behavior | Split,
    *,
    circuit: Circuit,
    n_steps: int = 100,
    learning_rate: float = 0.02,
) -> Conventions:
    """Conventions with constants, one a writer, under which a circuit's output is closest to the model's.

    Args:
        model: An open model.
        behavior: Prompts to learn on; of a behaviour its train split.
        circuit: Which edges are kept.
        n_steps: Of gradient descent, from the means on.
        learning_rate: As a share of each writer's root-mean-square mean.

    Returns:
        `Conventions(ablation="optimal", ...)`, for `circuit.evaluate(..., conventions=...)`.

    Cost: a forward and a backward pass a step. The best constants seen are kept, so it never ends worse than means.
    """
    circuit.refuse_unless_of(model)
    split = split_to_search(behavior, ablation="optimal")
    means = mean_of(model, split.clean)
    runs = EdgeRuns(model, split.clean, metric=kl_to_model(model, split), ablation=means)
    start = means.values.tensor
    size = start.pow(2).mean().sqrt().clamp_min(1e-6)
    moved = torch.zeros_like(start).requires_grad_()
    weights = torch.from_numpy(circuit.kept.copy()).to(start)[None]
    optimizer = torch.optim.Adam([moved], lr=learning_rate)
    best, least = start.clone(), float("inf")
    with torch.enable_grad(), runs.open():
        for _ in range(n_steps + 1):
            constants = start + size * moved
            loss = runs.measure_weighted(weights, constants=constants).mean()
            lost = float(loss.detach())
            if lost < least:
                best, least = constants.detach().clone(), lost
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Conventions(ablation="optimal", constants=Constant(how="optimal", values=Value(best)))
