"""Floor 8: attribution graphs of a local replacement model: build, prune, intervene, exchange, view."""

from mechscope.graphs.budget import Budget
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.exchange import graph_from_json, graph_to_json, open_graph_json, save_graph_json
from mechscope.graphs.files import write_graph_files
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.head_loadings import head_loadings
from mechscope.graphs.intervene import intervene
from mechscope.graphs.node_intervention import NodeIntervention
from mechscope.graphs.nodes import Node
from mechscope.graphs.qk import QKAttribution, attribute_qk
from mechscope.graphs.replacement import random_transcoders
from mechscope.graphs.supernodes import Supernode, effects_between, propose_supernodes
from mechscope.graphs.view import GraphView

__all__ = [
    "AttributionGraph",
    "Budget",
    "GraphView",
    "Node",
    "NodeIntervention",
    "QKAttribution",
    "Supernode",
    "attribute_qk",
    "attribution_graph",
    "effects_between",
    "graph_from_json",
    "graph_to_json",
    "head_loadings",
    "intervene",
    "open_graph_json",
    "propose_supernodes",
    "random_transcoders",
    "save_graph_json",
    "write_graph_files",
]
