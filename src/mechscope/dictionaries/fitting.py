"""Fitting: whether a dictionary belongs to a model: sites, widths, tokenizer."""

from mechscope.dictionaries.ports import refuse_several_models
from mechscope.dictionaries.settings import Port, Settings
from mechscope.models.model import Model
from mechscope.vocabulary.errors import DictionaryMismatch, SiteError

_BEFORE_SITE = ("batch", "pos")


def refuse_unless_fits(settings: Settings, model: Model) -> None:
    """Refuse a model that a dictionary was not made for; all problems at once.

    The weights' hash is not compared: a dictionary is often used on a fine-tuned descendant. `differences` tells.

    Raises:
        DictionaryMismatch
    """
    refuse_several_models(settings)
    problems = [
        problem for port in (*settings.reads, *settings.writes) for problem in _port_problems(port, model)
    ]
    hashed = settings.source.tokenizer_sha256
    if hashed and model.tokenizer_sha256 and hashed != model.tokenizer_sha256:
        problems.append(f"its tokenizer {hashed[:12]} is not the model's {model.tokenizer_sha256[:12]}")
    if problems:
        raise DictionaryMismatch(
            f"The dictionary does not belong to {model.identity.name}.",
            got=f"trained on {settings.source.model or 'a model that the file does not name'}",
            because="; ".join(dict.fromkeys(problems)),
            instead="the model that it was trained on, or a dictionary trained on this one",
        )


def differences(settings: Settings, model: Model) -> list[str]:
    """In what the model differs from the one on record: "weights", "dtype", "tokenizer"; empty if in nothing known."""
    source, here = settings.source, model.fingerprint
    pairs = {
        "weights": (source.weights_sha256, here.weights_sha256),
        "dtype": (source.dtype, here.dtype),
        "tokenizer": (source.tokenizer_sha256, model.tokenizer_sha256),
    }
    return [name for name, (known, found) in pairs.items() if known and known != found]


def _port_problems(port: Port, model: Model) -> list[str]:
    try:
        site = model.binding.site(port.site)
    except SiteError as error:
        return [error.what]
    axes = [axis for axis in site.row.axes if axis not in _BEFORE_SITE]
    sizes = [model.sizes.get(axis) for axis in axes]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return []  # a width that only a run tells; `encode` refuses it then
    width = 1
    for size in known:
        width *= size
    wanted = port.width
    return [] if width == wanted else [f"{site} carries {width} numbers here, the dictionary {wanted}"]
