"""CausalModel: what we believe a model computes, as variables that are functions of their parents.

Owns: the value, its checks, and what an interchange predicts. A function may be any Python; it is called on values
alone. Refuses, all problems at once, parents that do not exist or come later, and names used twice.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mechscope.vocabulary.errors import BadProgram

Setting = Mapping[str, Any]
"""A value for every input."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable.

    Args:
        name: Its name.
        parents: Inputs or earlier variables, in the order in which the function takes them.
        function: From the parents' values to this one's.
    """

    name: str
    parents: tuple[str, ...]
    function: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class CausalModel:
    """A high-level causal model.

    >>> high = CausalModel.of("sum of three", inputs=("a", "b", "c"), functions={
    ...     "partial": lambda a, b: a + b,
    ...     "total": lambda partial, c: partial + c})
    >>> high.predict({"a": 1, "b": 2, "c": 3}, {"partial": {"a": 5, "b": 5, "c": 0}})
    13

    Args:
        name: What results call it.
        inputs: What a setting gives.
        variables: In an order in which they can be computed.
        output: The variable whose value the model should say.

    Raises:
        BadProgram: every problem is told at once.
    """

    name: str
    inputs: tuple[str, ...]
    variables: tuple[Variable, ...]
    output: str

    def __post_init__(self) -> None:
        known, problems = set[str](), []
        for name in self.inputs:
            problems += [f'"{name}" is used twice'] if name in known else []
            known.add(name)
        for variable in self.variables:
            missing = [parent for parent in variable.parents if parent not in known]
            problems += [
                f'"{variable.name}" reads "{parent}", which is not known before it' for parent in missing
            ]
            problems += [f'"{variable.name}" is used twice'] if variable.name in known else []
            known.add(variable.name)
        if self.output not in {variable.name for variable in self.variables}:
            problems.append(f'the output "{self.output}" is no variable')
        if problems:
            raise BadProgram(
                f'"{self.name}" is no causal model.',
                got=f"inputs {', '.join(self.inputs)}; variables {', '.join(v.name for v in self.variables)}",
                because="; ".join(problems),
                instead="each variable is a function of inputs and of variables before it",
            )

    @classmethod
    def of(
        cls,
        name: str,
        *,
        inputs: Sequence[str],
        functions: Mapping[str, Callable[..., Any]],
        output: str | None = None,
    ) -> "CausalModel":
        """A causal model from functions: a variable's parents are the names of its function's parameters.

        Args:
            name: What results call it.
            inputs: What a setting gives.
            functions: Variable to function, in an order in which they can be computed.
            output: None is the last one.
        """
        variables = tuple(
            Variable(name=variable, parents=tuple(inspect.signature(function).parameters), function=function)
            for variable, function in functions.items()
        )
        last = variables[-1].name if variables else ""
        return cls(name=name, inputs=tuple(inputs), variables=variables, output=output or last)

    def changed(self, name: str, functions: Mapping[str, Callable[..., Any]]) -> "CausalModel":
        """A rival: the same inputs and names, with other functions of the same parents for some variables."""
        self.refuse_unless_it_has(tuple(functions))
        variables = tuple(
            replace(variable, function=functions.get(variable.name, variable.function))
            for variable in self.variables
        )
        return replace(self, name=name, variables=variables)

    def evaluate(self, setting: Setting, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every value, inputs included.

        Args:
            setting: A value for every input.
            fixed: Variables that are held at a value, whatever their parents say.

        Raises:
            BadProgram: an input has no value, or a fixed name is no variable.
        """
        missing = [name for name in self.inputs if name not in setting]
        if missing:
            raise BadProgram(
                f'A setting of "{self.name}" needs a value for every input.',
                got=", ".join(map(str, setting)),
                because=f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} none",
            )
        held = dict(fixed or {})
        self.refuse_unless_it_has(tuple(held))
        values = {name: setting[name] for name in self.inputs}
        for variable in self.variables:
            if variable.name in held:
                values[variable.name] = held[variable.name]
            else:
                values[variable.name] = variable.function(*(values[parent] for parent in variable.parents))
        return values

    def predict(self, base: Setting, sources: Mapping[str, Setting] | None = None) -> Any:
        """The output on `base` when each variable named takes the value that it has on its source."""
        self.refuse_unless_it_has(tuple(sources or ()))
        fixed = {name: self.evaluate(source)[name] for name, source in (sources or {}).items()}
        return self.evaluate(base, fixed)[self.output]

    def refuse_unless_it_has(self, names: Sequence[str]) -> None:
        """Refuse names that are no variables of this model.

        Raises:
            BadProgram: they are listed, with those that exist.
        """
        unknown = [name for name in names if name not in self.by_name]
        if unknown:
            raise BadProgram(
                f'"{self.name}" has no such variable.',
                got=", ".join(map(str, unknown)),
                because="only variables can be interchanged; an input is changed by another prompt",
                instead=", ".join(self.by_name),
            )

    @cached_property
    def by_name(self) -> Mapping[str, Variable]:
        """Variables by name."""
        return {variable.name: variable for variable in self.variables}

    def to_json(self) -> dict[str, Any]:
        """The graph, for records; functions cannot be saved."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "variables": {variable.name: list(variable.parents) for variable in self.variables},
            "output": self.output,
        }
