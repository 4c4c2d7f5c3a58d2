"""Registry: which behaviours there are, and the one door by which they come in, ours and others'.

A source draws pairs of one behaviour for models that it can serve. Several sources may serve one behaviour: the
one written for the model's own language comes first. Refuses a source that is registered twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Protocol, TypeVar, runtime_checkable

from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.models.inputs import Reader
from mechscope.vocabulary.errors import BadPairs, RegistrationError

ENTRY_POINTS = "mechscope.behaviors"


@runtime_checkable
class Draw(Protocol):
    """Draws pairs: a function of its arguments only, and a larger n extends a smaller one."""

    def __call__(
        self, reader: Reader, *, split: str, n: int, seed: int
    ) -> Sequence[PromptPair] | Sequence[TokenPair]: ...


DrawFunction = TypeVar("DrawFunction", bound=Draw)


def any_reader(reader: Reader) -> str:
    """Serves every model."""
    del reader
    return ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where pairs of one behaviour come from.

    Args:
        name: Of the behaviour.
        origin: Of the source: "village", "templates", a plug-in's name.
        draw: Draws pairs of a split.
        unavailable: For a model's reader, why it can't be served, with counts; "" if it can.
        version: Counts changes of templates and words; stands in every recipe.
        is_native: Written for the model's own language, so it goes before templates for any model.
        metric: Kind of metric; "" leaves it to the pairs.
    """

    name: str
    origin: str
    draw: Draw
    unavailable: Callable[[Reader], str] = any_reader
    version: int = 1
    is_native: bool = False
    metric: str = ""


_SOURCES: dict[tuple[str, str], Source] = {}
_opened: list[str] = []


def behavior(
    name: str,
    *,
    origin: str,
    unavailable: Callable[[Reader], str] = any_reader,
    version: int = 1,
    is_native: bool = False,
    metric: str = "",
) -> Callable[[DrawFunction], DrawFunction]:
    """Register the decorated function as a source of behaviour `name`; arguments as in `Source`.

    Third parties name a module in the entry-point group "mechscope.behaviors"; it is imported when behaviours
    are first asked for.

    Raises:
        RegistrationError: the origin has a source of that name already.
    """

    def register(draw: DrawFunction) -> DrawFunction:
        source = Source(
            name=name,
            origin=origin,
            draw=draw,
            unavailable=unavailable,
            version=version,
            is_native=is_native,
            metric=metric,
        )
        add_source(source)
        return draw

    return register


def add_source(source: Source) -> None:
    """Register a source.

    Raises:
        RegistrationError: its origin has a source of that name already, or it lacks a name.
    """
    key = (source.name, source.origin)
    if not all(key):
        raise RegistrationError("A behaviour needs a name and an origin.", got=key, instead="both as text")
    if key in _SOURCES:
        raise RegistrationError(
            f'"{source.origin}" has a behaviour "{source.name}" already.',
            got=f"{source.draw}",
            because="a recipe names its source, so two of one name could not be told apart",
            instead="another name or another origin",
        )
    _SOURCES[key] = source


def sources() -> list[Source]:
    """Every source, those written for one language first, then in order of registration."""
    _open_plugins()
    return sorted(_SOURCES.values(), key=lambda source: not source.is_native)


def names_for(reader: Reader) -> list[str]:
    """Names of the behaviours that some source can draw for this reader."""
    return sorted({source.name for source in sources() if not source.unavailable(reader)})


def source_for(name: str, reader: Reader, *, origin: str | None = None) -> Source:
    """The source of a behaviour for a model: one written for its language, else templates.

    Raises:
        BadPairs: no such behaviour, or none for this model: says why, with counts, and what there is.
    """
    known = [source for source in sources() if source.name == name and origin in (None, source.origin)]
    if not known:
        every = sorted({source.name for source in sources()})
        near = get_close_matches(name, every, n=3, cutoff=0.4)
        raise BadPairs(
            f'There is no behaviour "{name}".' if origin is None else f'"{origin}" has no "{name}".',
            got=name,
            instead=", ".join(near or every) + "; your own prompts: ms.behaviors.from_pairs(file, model)",
        )
    reasons = {source.origin: source.unavailable(reader) for source in known}
    for source in known:
        if not reasons[source.origin]:
            return source
    raise BadPairs(
        f'"{name}" can\'t be written for this model.',
        got=name,
        because="; ".join(f"{where}: {why}" for where, why in reasons.items()),
        instead=f"{', '.join(names_for(reader)) or 'nothing'} can; or your own prompts, ms.behaviors.from_pairs",
    )


def _open_plugins() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _opened:
            continue
        try:
            point.load()
        except Exception as error:
            raise RegistrationError(
                f'The behaviours of "{point.name}" could not be opened.',
                got=point.value,
                because=f"{type(error).__name__}: {error}",
                instead="update or remove that package",
            ) from error
        _opened.append(point.value)
