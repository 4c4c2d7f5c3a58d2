"""Layouts: how a module's raw tensor holds a point's tensor, as a view to read and a way to write back.

Every layout reads without copying where memory order allows. `write` never changes the raw tensor in place.
The last axis of a raw tensor is the one that is cut, so the same layout also cuts weights and biases.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Layout(Protocol):
    """A two-way map between what a module passes and what the table of points promises."""

    def read(self, raw: Tensor) -> Tensor: ...

    def write(self, raw: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """The raw tensor is the value."""

    def read(self, raw: Tensor) -> Tensor:
        return raw

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Heads:
    """[..., head * d_head] read as [..., head, d_head]."""

    n_heads: int

    def read(self, raw: Tensor) -> Tensor:
        return raw.unflatten(-1, (self.n_heads, -1))

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        return value.flatten(-2)


@dataclass(frozen=True)
class HeadsFirst:
    """[batch, head, pos, d_head] read as [batch, pos, head, d_head]."""

    def read(self, raw: Tensor) -> Tensor:
        return raw.transpose(1, 2)

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        return value.transpose(1, 2)


@dataclass(frozen=True)
class Columns:
    """Columns `start:stop` of a fused projection, then `inner` ([..., width] to the value)."""

    start: int
    stop: int
    inner: Layout = Plain()

    def read(self, raw: Tensor) -> Tensor:
        return self.inner.read(raw[..., self.start : self.stop])

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        part = raw[..., self.start : self.stop]
        out = raw.clone()
        out[..., self.start : self.stop] = self.inner.write(part, value)
        return out


@dataclass(frozen=True)
class Interleaved:
    """Fused projection stored head by head: [..., head * n_parts * d_head], this value being part `index`."""

    n_heads: int
    n_parts: int
    index: int

    def read(self, raw: Tensor) -> Tensor:
        return raw.unflatten(-1, (self.n_heads, self.n_parts, -1))[..., self.index, :]

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        out = raw.unflatten(-1, (self.n_heads, self.n_parts, -1)).clone()
        out[..., self.index, :] = value
        return out.flatten(-3)


@dataclass(frozen=True)
class Scaled:
    """The model multiplies what the module returns by `factor` before using it; the value is the product."""

    factor: float

    def read(self, raw: Tensor) -> Tensor:
        return raw * self.factor

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        return value / self.factor


@dataclass(frozen=True)
class Strided:
    """Every `step`-th entry of the last axis from `start`: gate and up projections stored alternately."""

    start: int
    step: int

    def read(self, raw: Tensor) -> Tensor:
        return raw[..., self.start :: self.step]

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        out = raw.clone()
        out[..., self.start :: self.step] = value
        return out


@dataclass(frozen=True)
class Copied:
    """The family adds to the raw tensor in place afterwards, so what is read and what goes on are copies."""

    def read(self, raw: Tensor) -> Tensor:
        return raw.clone()

    def write(self, raw: Tensor, value: Tensor) -> Tensor:
        return value.clone()
