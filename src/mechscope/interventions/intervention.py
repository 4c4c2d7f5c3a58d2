"""Intervention: the frozen base of all interventions, with equality, hash and a JSON form.

An intervention says what is done, where, and at which positions, heads, units and rows. It holds no model and
registers no hook. Tensors inside are compared and hashed by content.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mechscope.vocabulary.errors import BadFile, RegistrationError
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site, routing_at
from mechscope.vocabulary.where import Phase, Where

_KINDS: "dict[str, type[Intervention]]" = {}


class Value:
    """A tensor compared and hashed by content, so that it can live in a frozen value.

    Args:
        tensor: Kept detached; not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()

    @property
    def memory(self) -> Hashable:
        """Equal for two that look at the same memory in the same way, as long as both live."""
        tensor = self.tensor
        return tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()

    @cached_property
    def digest(self) -> str:
        """sha256 of dtype, shape and bytes."""
        data = self.tensor.cpu().contiguous()
        head = f"{data.dtype} {tuple(data.shape)} ".encode()
        return hashlib.sha256(head + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Value({list(self.tensor.shape)}, {self.digest[:8]})"


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Base of all interventions; satisfies `vocabulary.protocols.Write`.

    Args:
        at: A site or pattern.
        where: Selection inside it.
    """

    kind: ClassVar[str] = ""
    at: str
    where: Where = field(default_factory=Where)

    def only(
        self,
        *,
        rows: Sequence[int] | None = None,
        units: Sequence[int] | None = None,
        phase: Phase | None = None,
    ) -> "Intervention":
        """The same intervention on some rows of the batch, some units of the last axis, or in one phase.

        Args:
            rows: Rows of the batch.
            units: Indices on the last axis.
            phase: While generating: "prompt", "generated" or "both".
        """
        where, given = self.where, Where.of(rows=rows, units=units)
        if rows is not None:
            where = replace(where, rows=given.rows)
        if units is not None:
            where = replace(where, units=given.units)
        return replace(self, where=where if phase is None else replace(where, phase=phase))

    @property
    def routing(self) -> str:
        """Whether experts are chosen anew after this write ("recomputed") or not ("frozen"); "" off a router."""
        return routing_at(self.at)

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Intervention":
        """Ready as it is, unless a subclass says otherwise."""
        return self

    def likeness(self) -> Hashable | None:
        """Equal for interventions that give any token the same value, so that one call may serve them; None for none.

        Only for those that judge each token by itself, whatever others are given with it.
        """
        return None

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        """New value of the selected tokens, in token form."""
        raise RegistrationError(
            f"{type(self).__name__} has no `apply`.", because="every intervention says what it does"
        )

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """JSON form. Tensors are named by their digest; pass a dict to collect them.

        Raises:
            NotSerializable: the intervention holds a function.
        """
        saved: dict[str, Any] = {"kind": self.kind, "at": self.at}
        if routing := self.routing:
            saved["routing"] = routing
        if where := self.where.to_json():
            saved["where"] = where
        for spec in fields(self):
            if spec.name not in ("at", "where"):
                saved[spec.name] = _to_json(getattr(self, spec.name), tensors)
        return saved

    @classmethod
    def _rebuild(cls, saved: dict[str, Any], tensors: dict[str, Tensor]) -> "Intervention":
        values = {
            spec.name: _from_json(saved[spec.name], tensors)
            for spec in fields(cls)
            if spec.name in saved and spec.name not in ("at", "where")
        }
        return cls(at=saved["at"], where=Where.from_json(saved.get("where", {})), **values)


_K = TypeVar("_K", bound=Intervention)


def register_kind(name: str) -> Callable[[type[_K]], type[_K]]:
    """Name an intervention class for JSON; the name appears in claims.

    Raises:
        RegistrationError: the name is taken.
    """

    def register(cls: type[_K]) -> type[_K]:
        if name in _KINDS:
            raise RegistrationError(
                f'Two interventions are called "{name}".',
                got=f"{cls}, {_KINDS[name]}",
                because="a saved claim must mean one of them",
                instead="another name",
            )
        cls.kind = name
        _KINDS[name] = cls
        return cls

    return register


def intervention_from_json(saved: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Intervention:
    """Inverse of `Intervention.to_json`.

    Raises:
        BadFile: an unknown kind, or a tensor that is not among `tensors`.
    """
    cls = _KINDS.get(saved.get("kind", ""))
    if cls is None:
        raise BadFile(
            f'"{saved.get("kind")}" is not an intervention.',
            got=str(saved)[:80],
            instead=", ".join(sorted(_KINDS)),
        )
    return cls._rebuild(saved, tensors or {})


@runtime_checkable
class _Saveable(Protocol):
    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]: ...


def _to_json(value: Any, tensors: dict[str, Tensor] | None) -> Any:
    if isinstance(value, Value):
        if tensors is not None:
            tensors[value.digest] = value.tensor.cpu().contiguous()
        return {"tensor": value.digest, "shape": list(value.tensor.shape)}
    if isinstance(value, tuple):
        return [_to_json(item, tensors) for item in value]
    return value.to_json(tensors) if isinstance(value, _Saveable) else value


def _from_json(saved: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(saved, dict) and "tensor" in saved:
        if saved["tensor"] not in tensors:
            raise BadFile(
                "An intervention's tensor is missing.",
                got=saved["tensor"][:12],
                because="it is not among the tensors given",
            )
        return Value(tensors[saved["tensor"]])
    if isinstance(saved, dict) and "donor" in saved:
        from mechscope.interventions.donor import Donor

        return Donor.from_json(saved, tensors)
    return tuple(_from_json(item, tensors) for item in saved) if isinstance(saved, list) else saved
