"""The type checker behind jaxtyping's import hook: every function of the package, as cheaply as its signature allows.

jaxtyping decorates everything with `jaxtyped`, which binds the arguments of every call and, for a function inside a
function, compiles two checkers each time the outer one runs: half of the suite's time. So `install` puts a chooser
before it. Functions whose annotations name shapes (and classes, properties, and annotations still in quotes) go to
jaxtyping as before, other module-level functions and methods to beartype alone, which checks the same types;
functions inside functions are left as they are.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

CONFIGURATION = BeartypeConf(is_pep484_tower=True)
"""Takes an int where a float is asked for."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and result checked at every call."""
    return beartype(function, conf=CONFIGURATION)


def install(package: str) -> None:
    """Check every module of a package that is imported from now on."""
    jaxtyping.jaxtyped = chooser(jaxtyping.jaxtyped)
    jaxtyping.install_import_hook(package, "shape_checker.checked")


def chooser(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyped`, asked only where it adds something."""

    def choose(fn: Any = None, *, typechecker: Any) -> Any:
        if fn is None:
            return lambda given: choose(given, typechecker=typechecker)
        if inspect.isfunction(fn):
            if "<locals>" in fn.__qualname__:
                return fn
            return jaxtyped(fn, typechecker=typechecker) if needs_shapes(fn) else checked(fn)
        if dataclasses.is_dataclass(fn) and inspect.isfunction(fn.__init__) and not needs_shapes(fn.__init__):
            fn.__init__ = checked(fn.__init__)
            return fn
        return jaxtyped(fn, typechecker=typechecker)

    return choose


def needs_shapes(function: Callable[..., Any]) -> bool:
    """Does an annotation name a shape, or may one that is still in quotes?"""
    return any(_names_a_shape(annotation) for annotation in function.__annotations__.values())


def _names_a_shape(annotation: Any) -> bool:
    if isinstance(annotation, str | ForwardRef):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return get_origin(annotation) is not Literal and any(map(_names_a_shape, get_args(annotation)))
