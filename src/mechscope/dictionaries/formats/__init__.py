"""Formats of other libraries, registered with `ms.dictionaries.open`: one file each, reader and writer."""

from collections.abc import Callable
from pathlib import Path

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats import (
    circuit_tracer,
    clt_training,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    openai,
    sae_lens,
    sae_lens_writing,
    sparsify,
)
from mechscope.dictionaries.formats.answers import ANSWERS, Answers
from mechscope.dictionaries.formats.hub import find_on_hub
from mechscope.dictionaries.opening import FINDERS, FORMATS, Format, register_format
from mechscope.vocabulary.errors import DictionaryError

Reader = Callable[[Path, Answers], Dictionary]
Writer = Callable[[Dictionary, Path], None]


def _register(
    name: str,
    recognizes: Callable[[Path], bool],
    read: Reader,
    write: Writer | None = None,
    *,
    fetches: tuple[str, ...] = (),
) -> None:
    def opened(place: Path, **answers: object) -> Dictionary:
        return read(place, answers_of(answers))

    register_format(Format(name=name, recognizes=recognizes, open=opened, save=write, fetches=fetches))


def answers_of(given: dict[str, object]) -> Answers:
    """Keyword arguments of `open` as answers.

    Raises:
        DictionaryError: one is none that any format asks for.
    """
    unknown = sorted(set(given) - set(ANSWERS))
    if unknown:
        raise DictionaryError(
            f"No format asks for {', '.join(unknown)}.", got=", ".join(given), instead=", ".join(ANSWERS)
        )
    return Answers(**given)  # pyright: ignore[reportArgumentType]


def export_dictionary(dictionary: Dictionary, path: str | Path, *, format: str) -> None:
    """Write a dictionary in the format of another library, as a folder.

    Args:
        dictionary: With an input scale that can be folded, it is folded: no other format has a place for it.
        path: The folder; files there of the same name are replaced.
        format: "saelens", "dictionary_learning", "dictionary_learning_crosscoder", "sparsify", "circuit_tracer", or
            "mechscope", which holds everything.

    Raises:
        DictionaryError: the format can't hold this dictionary, or has no writer.
    """
    writers = {name: one.save for name, one in FORMATS.items() if one.save is not None}
    if format not in writers:
        raise DictionaryError(
            f'Nothing is written in the format "{format}".', got=format, instead=", ".join(sorted(writers))
        )
    writers[format](dictionary, Path(path))


_register("saelens", sae_lens.is_sae_lens, sae_lens.open_sae_lens, sae_lens_writing.write_sae_lens)
_register(
    "dictionary_learning",
    dictionary_learning.is_dictionary_learning,
    dictionary_learning.open_dictionary_learning,
    dictionary_learning.write_dictionary_learning,
)
_register(
    "dictionary_learning_crosscoder",
    crosscoders.is_crosscoder,
    crosscoders.open_crosscoder,
    crosscoders.write_crosscoder,
)
_register(
    "clt_training",
    clt_training.is_clt_training,
    clt_training.open_clt_training,
    fetches=(f"*/{sparsify.CONFIG}", f"*/{sparsify.WEIGHTS}"),
)
_register("sparsify", sparsify.is_sparsify, sparsify.open_sparsify, sparsify.write_sparsify)
_register("gemma_scope", gemma_scope.is_gemma_scope, gemma_scope.open_gemma_scope)
_register("gemma_scope_2", gemma_scope.is_gemma_scope_2, gemma_scope.open_gemma_scope_2)
_register(
    "llama_scope",
    llama_scope.is_llama_scope,
    llama_scope.open_llama_scope,
    fetches=(llama_scope.FINAL,),
)
_register("openai", openai.is_openai, openai.open_openai)
_register(
    "circuit_tracer",
    circuit_tracer.is_circuit_tracer,
    circuit_tracer.open_circuit_tracer,
    circuit_tracer.write_circuit_tracer,
)
FINDERS.append(find_on_hub)
