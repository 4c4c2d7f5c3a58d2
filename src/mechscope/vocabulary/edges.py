"""Nodes and edges of a transformer's computation, by name, and which of them a shape of model has.

A *node* writes to the residual stream (the embedding, a head, an MLP) or reads it last (the logits). An *edge*
is what one node's output adds to what another node reads, before the reader's norm. `Wiring` enumerates them.
Names: `embed`, `a3.4` (head 4 of layer 3), `m3`, `logits`; `kv3.1` is the key/value head 1 of layer 3 where
several query heads share it; a part of a node is `m3:17` (neuron or expert 17 of it), a node at one position
`a3.4@7`. Latents of a dictionary are nodes at the site that it writes: `resid_post.2:417`; what it leaves over there
is `resid_post.2:error`. Edges: `a2.1->a3.4.q`, `embed->m0`, `m1->logits`. Pure data: imports no torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

from mechscope.vocabulary.errors import UnknownEdge
from mechscope.vocabulary.points import POINTS

NodeKind = Literal["embed", "head", "kv", "mlp", "logits", "latent", "error"]
Input = Literal["q", "k", "v", ""]

_QUERY: Input = "q"
_WHOLE: Input = ""
_KEYS_AND_VALUES: tuple[Input, Input] = ("k", "v")
_NODE = re.compile(r"(embed|logits|a\d+\.\d+|kv\d+\.\d+|m\d+)(?::(\d+))?(?:@(-?\d+))?")
_OF_DICTIONARY = re.compile(r"([a-z]\w*)\.(\d+)(?::(\d+|error))?(?:@(-?\d+))?")
_EDGE = re.compile(r"(\S+)->(\S+?)(?:\.([qkv]))?")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One part of the model that writes to the residual stream or reads it.

    Args:
        kind: "kv" only reads: it is a key/value head that several query heads share. "latent" and "error" are what a
            dictionary explains of a site, and what it leaves over.
        layer: None for the embedding and the logits.
        head: Query head, or key/value head for "kv".
        unit: A neuron or expert of an MLP, a latent of a site's dictionary; None is all of it.
        position: One position of the prompt; None is all of them.
        point: Of latents and errors: "resid_post".
    """

    kind: NodeKind
    layer: int | None = None
    head: int | None = None
    unit: int | None = None
    position: int | None = None
    point: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "head":
                name = f"a{self.layer}.{self.head}"
            case "kv":
                name = f"kv{self.layer}.{self.head}"
            case "mlp":
                name = f"m{self.layer}"
            case "latent" | "error":
                name = f"{self.point}.{self.layer}" + (":error" if self.kind == "error" else "")
            case _:
                name = self.kind
        unit = "" if self.unit is None else f":{self.unit}"
        return name + unit + ("" if self.position is None else f"@{self.position}")

    @classmethod
    def parse(cls, name: "str | Node") -> "Node":
        """The node of a name.

        Raises:
            UnknownEdge: the name is not one of the forms above.
        """
        if isinstance(name, Node):
            return name
        match = _NODE.fullmatch(name)
        if match is None:
            return cls._parse_latent(name)
        word, unit, position = match.groups()
        rest: dict[str, Any] = {
            "unit": None if unit is None else int(unit),
            "position": None if position is None else int(position),
        }
        if word in ("embed", "logits"):
            return cls(kind=word, **rest)
        if word.startswith("m"):
            return cls(kind="mlp", layer=int(word[1:]), **rest)
        kind = "kv" if word.startswith("kv") else "head"
        layer, head = word.lstrip("akv").split(".")
        return cls(kind=kind, layer=int(layer), head=int(head), **rest)

    @classmethod
    def _parse_latent(cls, name: str) -> "Node":
        match = _OF_DICTIONARY.fullmatch(name)
        if match is None or match[1] not in POINTS:
            raise UnknownEdge(
                f'"{name}" is not the name of a node.',
                got=name,
                because="a node is embed, logits, a head, an MLP, or a latent or the error of a site",
                instead='"a3.4" (head 4 of layer 3), "m3" (its MLP), "embed", "logits", "resid_post.2:417"',
            )
        point, layer, unit, position = match.groups()
        return cls(
            kind="error" if unit == "error" else "latent",
            point=point,
            layer=int(layer),
            unit=None if unit in (None, "error") else int(unit),
            position=None if position is None else int(position),
        )

    @property
    def whole(self) -> "Node":
        """The same node, all units and positions of it."""
        return replace(self, unit=None, position=None)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What `source` adds to what `target` reads; `input` says which of a head's three inputs.

    An edge into a key or value input ends in the key/value head: a "kv" node where heads share them.
    """

    source: Node
    target: Node
    input: Input = ""

    def __str__(self) -> str:
        return f"{self.source}->{self.target}" + (f".{self.input}" if self.input else "")

    @classmethod
    def parse(cls, name: "str | Edge") -> "Edge":
        """The edge of a name such as "a2.1->a3.4.q".

        Raises:
            UnknownEdge: the name is not of this form, or a head's input is missing.
        """
        if isinstance(name, Edge):
            return name
        match = _EDGE.fullmatch(name)
        edge = None
        if match is not None:
            source, target, which = match.groups()
            edge = cls(source=Node.parse(source), target=Node.parse(target), input=cast(Input, which or ""))
        if edge is None or (edge.input != "") != (edge.target.kind in ("head", "kv")):
            raise UnknownEdge(
                f'"{name}" is not the name of an edge.',
                got=name,
                because="an edge is SOURCE->TARGET, and into a head it says which input: .q, .k or .v",
                instead='"a2.1->a3.4.q", "embed->m0", "m1->logits"',
            )
        return edge


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Which nodes and edges a model has: all that discovery needs to know of its shape.

    Args:
        n_layers: Layers.
        n_heads: Query heads a layer.
        n_kv_heads: Key/value heads a layer; fewer than `n_heads` where they are shared.
        is_parallel: The MLP reads what attention reads, so no head feeds its own layer's MLP.
        has_mlps: False for attention-only models.

    GPT-2 small (12 layers, 12 heads) has 158 nodes and 32,491 edges.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    is_parallel: bool = False
    has_mlps: bool = True

    @cached_property
    def writers(self) -> tuple[Node, ...]:
        """Nodes that add to the residual stream, in the order in which they can be computed."""
        nodes = [Node(kind="embed")]
        for layer in range(self.n_layers):
            nodes += [Node(kind="head", layer=layer, head=head) for head in range(self.n_heads)]
            nodes += [Node(kind="mlp", layer=layer)] if self.has_mlps else []
        return tuple(nodes)

    @cached_property
    def readers(self) -> tuple[tuple[Node, Input], ...]:
        """Inputs in the order in which they are read: q of each head, k and v of each key/value head, MLPs, logits."""
        shared = self.n_kv_heads < self.n_heads
        inputs: list[tuple[Node, Input]] = []
        for layer in range(self.n_layers):
            inputs.extend((Node(kind="head", layer=layer, head=head), _QUERY) for head in range(self.n_heads))
            for which in _KEYS_AND_VALUES:
                inputs.extend(
                    (Node(kind="kv" if shared else "head", layer=layer, head=head), which)
                    for head in range(self.n_kv_heads)
                )
            if self.has_mlps:
                inputs.append((Node(kind="mlp", layer=layer), _WHOLE))
        return (*inputs, (Node(kind="logits"), ""))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Writers and the logits."""
        return (*self.writers, Node(kind="logits"))

    def n_sources(self, target: Node) -> int:
        """How many of `writers`, counted from the first, a reader sees."""
        a_layer = self.n_heads + self.has_mlps
        if target.kind == "logits":
            return len(self.writers)
        if target.layer is None:
            return 0
        before = 1 + target.layer * a_layer
        return before + self.n_heads * (target.kind == "mlp" and not self.is_parallel)

    def sources(self, target: Node) -> tuple[Node, ...]:
        """The writers that a reader sees."""
        return self.writers[: self.n_sources(target)]

    def edges(self) -> Iterator[Edge]:
        """Every edge, reader by reader in the order of `readers`, writers in the order of `writers`."""
        for target, which in self.readers:
            for source in self.sources(target):
                yield Edge(source=source, target=target, input=which)

    @cached_property
    def n_edges(self) -> int:
        """How many edges there are."""
        return sum(self.n_sources(target) for target, _ in self.readers)

    def inputs_of(self, writer: Node) -> tuple[tuple[Node, Input], ...]:
        """The inputs that a writer's own output is computed from: a head's q, k and v, an MLP's one."""
        if writer.kind == "head" and writer.head is not None:
            group = writer.head * self.n_kv_heads // self.n_heads
            kind = "kv" if self.n_kv_heads < self.n_heads else "head"
            key = Node(kind=kind, layer=writer.layer, head=group)
            return (writer.whole, "q"), (key, "k"), (key, "v")
        return ((writer.whole, ""),) if writer.kind in ("mlp", "logits") else ()

    def refuse_unless_it_has(self, edge: Edge) -> None:
        """Refuse an edge that this model does not have.

        Raises:
            UnknownEdge: its reader does not exist here, or comes before its writer.
        """
        reader = (edge.target.whole, edge.input)
        if reader in self.readers and edge.source.whole in self.sources(edge.target.whole):
            return
        exists = reader in self.readers
        raise UnknownEdge(
            f'"{edge}" is no edge of this model.',
            got=f"{edge}; {self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} key/value heads",
            because=f"{edge.source} is not computed before {edge.target} reads"
            if exists
            else f"nothing reads as {edge.target} {edge.input}".rstrip(),
            instead="Wiring.edges() lists them; where heads share keys, edges into .k and .v end in kvLAYER.HEAD",
        )
