"""The wiring of an open model: which nodes and edges its shape has."""

from typing import TYPE_CHECKING

from mechscope.models.limits import refuse_normed_stream
from mechscope.vocabulary.edges import Wiring

if TYPE_CHECKING:
    from mechscope.models.model import Model


def wiring_of(model: "Model") -> Wiring:
    """Nodes and edges of a model, from its numbers of layers and heads and the way its layers are built.

    Raises:
        PointUnavailable: norms stand on the residual stream, so that no reader reads a sum of what nodes add.
    """
    binding = model.binding
    refuse_normed_stream(binding.anatomy, "Edges")
    return Wiring(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        is_parallel=binding.anatomy.is_parallel,
        has_mlps=any("mlp_out" in binding.parts_of(layer) for layer in range(model.n_layers)),
    )
