"""Nodes: what stands in an attribution graph, as columns of numbers: latents, errors, tokens, logits, in this order.

Latents are sorted by what they read, then position, then number; errors by site, then position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from mechscope.vocabulary.errors import PositionOutOfRange

Kind = Literal["latent", "error", "token", "logit"]
KINDS: tuple[Kind, ...] = ("latent", "error", "token", "logit")


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        index: Its place in the graph's order.
        kind: "latent", "error", "token" or "logit".
        layer: Of a latent, where it is read; of an error, where it stands; -1 for tokens; for logits, the number of
            layers.
        position: In the prompt.
        number: Of a latent in its dictionary; of a token in the vocabulary; of a logit, its place among the targets;
            of an error, -1.
        activation: Of a latent; NaN for the others.
        name: Unique: "3.17@5", "error mlp_out.3@5", 'token@5', 'logit 0'.
        text: What a person reads.
    """

    index: int
    kind: Kind
    layer: int
    position: int
    number: int
    activation: float
    name: str
    text: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Nodes:
    """All nodes of a graph.

    Args:
        kinds: Index into `KINDS`, [node].
        layers: [node].
        positions: [node].
        numbers: [node].
        activations: [node].
        sites: Number of the site that a latent is read at or an error stands at, [node]; -1 for the others.
        site_names: The sites.
        tokens: The prompt's tokens as text.
        token_ids: Their ids.
        logits: Labels of the targets.
    """

    kinds: Int[np.ndarray, " node"]
    layers: Int[np.ndarray, " node"]
    positions: Int[np.ndarray, " node"]
    numbers: Int[np.ndarray, " node"]
    activations: Float[np.ndarray, " node"]
    sites: Int[np.ndarray, " node"]
    site_names: tuple[str, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    logits: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Node:
        if not -len(self) <= index < len(self):
            raise PositionOutOfRange(
                "There is no such node.",
                got=index,
                because=f"the graph has {len(self)} nodes, counted from 0",
            )
        index %= len(self)
        kind = KINDS[int(self.kinds[index])]
        return Node(
            index=index,
            kind=kind,
            layer=int(self.layers[index]),
            position=int(self.positions[index]),
            number=int(self.numbers[index]),
            activation=float(self.activations[index]),
            name=self.name(index),
            text=self._text(kind, index),
        )

    def of(self, kind: Kind) -> Int[np.ndarray, " n"]:
        """Indices of all nodes of a kind."""
        return np.flatnonzero(self.kinds == KINDS.index(kind))

    def name(self, index: int) -> str:
        """A node's unique name."""
        kind, position, number = KINDS[int(self.kinds[index])], self.positions[index], self.numbers[index]
        if kind == "latent":
            return f"{self.site_names[self.sites[index]]}/{number}@{position}"
        if kind == "error":
            return f"error {self.site_names[self.sites[index]]}@{position}"
        return f"token@{position}" if kind == "token" else f"logit {number}"

    def find(self, name: str) -> Node:
        """The node of a name.

        Raises:
            PositionOutOfRange: no node has it.
        """
        for index in range(len(self)):
            if self.name(index) == name:
                return self[index]
        raise PositionOutOfRange(
            f'No node is called "{name}".',
            got=name,
            because="a latent that did not fire, or that was left out, is no node",
            instead=f"names like {self.name(0)!r}; graph.latents(layer=, position=) lists them",
        )

    def take(self, kept: Int[np.ndarray, " n"]) -> "Nodes":
        """Some nodes, in their order."""
        fields: dict[str, Any] = {
            name: getattr(self, name)[kept]
            for name in ("kinds", "layers", "positions", "numbers", "activations", "sites")
        }
        return Nodes(
            **fields,
            site_names=self.site_names,
            tokens=self.tokens,
            token_ids=self.token_ids,
            logits=self.logits,
        )

    def _text(self, kind: Kind, index: int) -> str:
        position = int(self.positions[index])
        if kind == "token":
            return self.tokens[position]
        if kind == "logit":
            return self.logits[int(self.numbers[index])]
        site = self.site_names[self.sites[index]]
        return f"error of {site}" if kind == "error" else f"latent {self.numbers[index]} of {site}"


def indices_of(nodes: Nodes, wanted: "int | str | Node | Sequence[int | str | Node]") -> list[int]:
    """Indices of nodes given by index, name or themselves.

    Raises:
        PositionOutOfRange: no such node.
    """
    items = [wanted] if isinstance(wanted, int | str | Node | np.integer) else list(wanted)
    found = []
    for item in items:
        if isinstance(item, Node):
            found.append(item.index)
        elif isinstance(item, str):
            found.append(nodes.find(item).index)
        else:
            found.append(nodes[int(item)].index)
    return found
