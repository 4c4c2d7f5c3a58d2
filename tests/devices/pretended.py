"""A pretended second device: tensors that compute on the CPU and refuse what a GPU would refuse.

Where no GPU is at hand, code that mixes devices passes every test and fails on the first machine that has one. Tensors
of `Elsewhere` hold a CPU tensor and say that they lie on another device; every operator that is given tensors of both
raises, but for those that PyTorch allows: copies, single numbers, and indices that lie on the CPU.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)
_KERNELS = torch.library.Library("aten", "IMPL")  # what is made of lists in C++ goes past every Python mode


def _empty(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return torch._C._acc.create_empty_tensor(tuple(size), dtype or torch.get_default_dtype())  # pyright: ignore


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    found = source.held.clone() if hasattr(source, "held") else source.detach().clone()  # pyright: ignore
    if not is_there(target):
        return target.copy_(found)
    target.held = found  # pyright: ignore
    return target


_KERNELS.impl("empty_strided", _empty, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy, "PrivateUse1")

_CROSSES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.set_.source_Tensor)
_INDEXES = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class Elsewhere(Tensor):
    """A tensor that says it lies on `DEVICE`."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held.detach()

    def tolist(self) -> Any:
        """As of a tensor on a GPU, which PyTorch copies by itself; it does not for subclasses."""
        return self.held.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees operators without a tensor of `Elsewhere` among their arguments: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


def _dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    there = any(map(is_there, tensors))
    asked = kwargs.get("device")
    goes_there = torch.device(asked) == DEVICE if asked is not None else there
    if there:
        _refuse_mixed(func, args, tensors)
    plain_args, plain = tree_map_only(Tensor, _held, (args, kwargs))
    if asked is not None:
        plain = plain | {"device": "cpu"}
    if func is torch.ops.aten._to_copy.default and asked is not None:
        plain.pop("non_blocking", None)
    if func is torch.ops.aten.histc.default:  # which takes whole numbers on a GPU only
        plain_args = (plain_args[0].float(), *plain_args[1:])
    found = func(*plain_args, **plain)
    if func._schema.is_mutable and not func._schema.name.endswith("_out"):
        given = _mutated(func, args, kwargs)
        if given is not None and (not isinstance(found, Tensor) or isinstance(given, Elsewhere)):
            return _alike(given, found) if isinstance(found, Tensor) else found
    return tree_map(_put_there, found) if goes_there else found


def _mutated(func: Any, args: Any, kwargs: Any) -> Any:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[place] if place < len(args) else kwargs.get(argument.name)
    return None


def _alike(given: Any, found: Tensor) -> Tensor:
    return given if isinstance(given, Elsewhere) and given.held.shape == given.shape else Elsewhere(found)


def _put_there(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.layout != torch.strided:  # sparse tensors can't be wrapped: they are marked
        leaf.lies_there = True  # pyright: ignore
        return leaf
    return Elsewhere(leaf)


def _held(tensor: Tensor) -> Tensor:
    return getattr(tensor, "held", tensor)


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor lies on the pretended device."""
    return tensor.device.type == NAME or hasattr(tensor, "lies_there")


def _refuse_mixed(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _CROSSES:
        return
    strangers = [t for t in tensors if not is_there(t) and t.ndim > 0]
    if func in _INDEXES and is_there(args[0]):
        values = args[2:3] if len(args) > 2 else ()
        strangers = [t for t in values if isinstance(t, Tensor) and not is_there(t) and t.ndim > 0]
    if strangers:
        shapes = ", ".join(f"{'there' if is_there(t) else 'cpu'} {list(t.shape)}" for t in tensors)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {shapes}")


@contextmanager
def pretended_device() -> Generator[torch.device]:
    """While it lasts, tensors can be made on and moved to the pretended device."""
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Factories():  # modes belong to a thread
            run(thread)

    with mock.patch.object(threading.Thread, "run", run_there), _Factories():
        yield DEVICE


def moved(module: nn.Module) -> nn.Module:
    """A module with its parameters and buffers on the pretended device."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Elsewhere(parameter.data), parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)
    return module
