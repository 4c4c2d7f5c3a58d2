"""Attribution graphs in the JSON of circuit-tracer, Neuronpedia and Anthropic's front ends, both ways."""

from mechscope.graphs.exchange.reading import graph_from_json, open_graph_json
from mechscope.graphs.exchange.schema import cantor_pair, cantor_unpair, refuse_malformed
from mechscope.graphs.exchange.writing import graph_to_json, save_graph_json

__all__ = [
    "cantor_pair",
    "cantor_unpair",
    "graph_from_json",
    "graph_to_json",
    "open_graph_json",
    "refuse_malformed",
    "save_graph_json",
]
