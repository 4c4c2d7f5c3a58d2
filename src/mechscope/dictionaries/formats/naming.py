"""Naming: from the module and hook names in foreign files to our sites, and back.

TransformerLens names are the vocabulary's; here are names of Hugging Face modules and of SAE folders. A name that
means nothing here is a question, never a guess.
"""

import re

from mechscope.dictionaries.formats.answers import Answers, ambiguous
from mechscope.dictionaries.settings import Port
from mechscope.vocabulary.errors import DictionaryMismatch, UnknownSite
from mechscope.vocabulary.foreign_names import MLP_INPUT_HOOK, foreign_name
from mechscope.vocabulary.sites import Site

_LAYER = r"(?:model\.|language_model\.|transformer\.|gpt_neox\.)*(?:layers|h|blocks)\.(?P<layer>\d+)"
_MODULES: tuple[tuple[str, str, str], ...] = (
    # inside a layer, what is read at its input, what it gives
    ("", "resid_pre", "resid_post"),
    (r"\.mlp", "mlp_in", "mlp_raw"),
    (r"\.(?:self_attn|attn|attention)", "attn_in", "attn_raw"),
    (r"\.self_attn\.o_proj", "z", "attn_raw"),
    (r"\.attn\.c_proj", "z", "attn_raw"),
    (r"\.pre_feedforward_layernorm", "resid_mid", "mlp_in"),
    (r"\.post_feedforward_layernorm", "mlp_raw", "mlp_out"),
    (r"\.input_layernorm", "resid_pre", "ln1"),
)
_HOOKS = {
    "mlp.hook_in": "mlp_in",
    MLP_INPUT_HOOK: "mlp_in",
    "mlp.hook_out": "mlp_out",
    "attn.hook_out": "attn_out",
}
_DICTIONARY_LEARNING = {
    "resid_post": "resid_post",
    "mlp": "mlp_raw",
    "attention": "attn_raw",
    "attn": "attn_raw",
}


def site_from_hook(name: str) -> Site | None:
    """Site of a TransformerLens hook name, with the aliases that transcoder files use; None if unknown."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match and match[2] in _HOOKS:
        return Site(_HOOKS[match[2]], int(match[1]))
    try:
        return Site.parse(name)
    except (UnknownSite, ValueError):
        return None


def site_from_module(path: str, side: str) -> Site | None:
    """Site of a Hugging Face module's "input" or "output"; a suffix in the path says it itself. None if unknown."""
    for given in ("input", "output"):
        if path.endswith(f".{given}"):
            path, side = path.removesuffix(f".{given}"), given
    for inside, read, written in _MODULES:
        if match := re.fullmatch(_LAYER + inside, path):
            return Site(read if side == "input" else written, int(match["layer"]))
    return None


def site_from_submodule(name: str) -> Site | None:
    """Site of a dictionary_learning `submodule_name`: "resid_post_layer_8"; None if unknown."""
    match = re.fullmatch(r"(\w+?)_layer_(\d+)", name or "")
    point = _DICTIONARY_LEARNING.get(match[1]) if match else None
    return None if match is None or point is None else Site(point, int(match[2]))


def hook_of(site: Site) -> str:
    """The TransformerLens name of a site, for files that are read by others.

    Raises:
        DictionaryMismatch: there is no such name.
    """
    aliases = {point: hook for hook, point in reversed(_HOOKS.items())}
    name = foreign_name(site.point, site.layer)
    if name is None and site.point in aliases:
        name = f"blocks.{site.layer}.{aliases[site.point]}"
    if name is None:
        raise DictionaryMismatch(
            f"{site} has no name in the other vocabulary.",
            got=site,
            because="the file would not say where the dictionary belongs",
            instead="dictionary.save(path), our own format",
        )
    return name


def settle_site(answers: Answers, stated: Site | None, raw: str, *, which: str = "site") -> Site:
    """The site that a file states or that the caller names.

    Raises:
        AmbiguousDictionary: the file does not say, or says it in a name that we can't read.
    """
    answer = getattr(answers, which)
    if answer is None and stated is None:
        verb = "written" if which == "writes" else "read"
        said = f' (the file says "{raw}")' if raw else ""
        raise ambiguous(which, f"Which site is {verb} by this dictionary?{said}", 'such as "resid_post.6"')
    given = None if answer is None else Site.parse(answer)
    if given is not None and stated is not None and given != stated:
        raise DictionaryMismatch(
            f"The file states the {which} itself, and otherwise.",
            got=f"{which}={answer!r}, the file says {stated}",
            because="the same weights at another site give meaningless codes",
            instead=f"leave {which} out",
        )
    site = given if stated is None else stated
    assert site is not None
    return site


def port_at(site: Site, width: int, answers: Answers) -> Port:
    """A port of `width` numbers; at "z" divided into the heads that the caller names."""
    if site.point != "z" or answers.n_heads is None:
        return Port(site=site, shape=(width,))
    if width % answers.n_heads:
        raise DictionaryMismatch(
            "The width does not divide into the heads.",
            got=f"width {width}, n_heads={answers.n_heads}",
            instead="the number of query heads of the model",
        )
    return Port(site=site, shape=(answers.n_heads, width // answers.n_heads))
