"""The command line as data: every command with its arguments, options, types and defaults.

Read from the functions and their annotations, so it does not depend on how typer draws its help.
`python -m guards.command_line` (or `make cli-snapshot`) writes the snapshot that the guard compares with.
"""

import inspect
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("command_line.json")


def commands(app: Any, prefix: str = "mechscope") -> Iterator[tuple[str, Callable[..., Any]]]:
    """(full name, function) of each command of a typer application, groups included."""
    for command in app.registered_commands:
        function = command.callback
        yield f"{prefix} {command.name or function.__name__.replace('_', '-')}", function
    for group in app.registered_groups:
        yield from commands(group.typer_instance, f"{prefix} {group.name}")


def command_line(app: Any) -> dict[str, list[str]]:
    """Full name of each command -> its parameters, one line each, in order."""
    return {
        name: [parameter_line(parameter) for parameter in parameters(function)]
        for name, function in sorted(commands(app))
    }


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Parameters with their annotations as objects."""
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    return [item.replace(annotation=hints[item.name]) for item in signature.parameters.values()]


def declaration(parameter: inspect.Parameter) -> Any:
    """The typer.Option or typer.Argument of an Annotated parameter; None if it has none."""
    extras = getattr(parameter.annotation, "__metadata__", ())
    return next((extra for extra in extras if "Info" in type(extra).__name__), None)


def parameter_line(parameter: inspect.Parameter) -> str:
    """One line: kind, flags or name, type, default."""
    told = declaration(parameter)
    needed = parameter.default is inspect.Parameter.empty
    kind = "argument" if "Argument" in type(told).__name__ or (told is None and needed) else "option"
    first = getattr(told, "default", None)  # inside Annotated, typer keeps the first flag here
    flags = [first] if isinstance(first, str) and first.startswith("-") else []
    flags += getattr(told, "param_decls", None) or ()
    flags = flags or [f"--{parameter.name.replace('_', '-')}"]
    shown = parameter.name if kind == "argument" else "/".join(flags)
    plain = getattr(parameter.annotation, "__origin__", parameter.annotation)
    type_name = plain.__name__ if isinstance(plain, type) else str(plain)
    return f"{kind} {shown} {type_name} {'required' if needed else f'default {parameter.default!r}'}"


def undocumented(app: Any) -> list[str]:
    """Commands without a docstring and parameters without help text."""
    found: list[str] = []
    for name, function in commands(app):
        found += [] if function.__doc__ else [name]
        found += [
            f"{name} {p.name}" for p in parameters(function) if not getattr(declaration(p), "help", None)
        ]
    return found


def mechscope_app() -> Any:
    """The typer application behind `mechscope`."""
    import typer

    from mechscope.cli import main

    apps = [value for value in vars(main).values() if isinstance(value, typer.Typer)]
    assert apps, "mechscope.cli.main holds no typer.Typer"
    return apps[0]


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(command_line(mechscope_app()), indent=2) + "\n")
