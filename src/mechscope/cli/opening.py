"""`mechscope open`, `doctor`, `behaviors`: look at a model. Also how every command opens one, quietly."""

import warnings
from typing import TYPE_CHECKING, Any

import typer

from mechscope.cli.application import DeviceOption, Dtype, DtypeOption, JsonOption, ModelArgument, app
from mechscope.cli.terminal import emit, facts, say, table

if TYPE_CHECKING:
    from mechscope.models.model import Model


def open_model(name: str, *, dtype: str = "auto", device: str = "cpu", check: bool = True) -> "Model":
    """Open a model without the library's progress bars and warnings."""
    from transformers.utils import logging

    from mechscope.models.opening import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)(\.|$)")
    return load(name, dtype=dtype, device=device, check=check)


def open_recorded(asked: str | None, recorded: str, *, dtype: str = "auto", device: str = "cpu") -> "Model":
    """Open the model that was asked for, or the one that a record names."""
    from mechscope.models.opening import name_to_open

    return open_model(asked or name_to_open(recorded), dtype=dtype, device=device)


@app.command("open")
def show_model(
    model: ModelArgument,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Say what a model is: sizes, tokenizer, fingerprint, and the sites that can be read and written."""
    opened = open_model(model, dtype=dtype.value, device=device)
    sizes, tokenizer, points = sizes_of(opened), tokenizer_facts(opened), point_rows(opened)
    print_of = opened.fingerprint.model_dump()
    if as_json:
        emit({"model": sizes, "tokenizer": tokenizer, "fingerprint": print_of, "points": points})
        return
    facts(sizes)
    say()
    facts({f"tokenizer {name}".rstrip(): value for name, value in tokenizer.items()} or {"tokenizer": "none"})
    say()
    facts({"weights sha256": print_of["weights_sha256"], "config sha256": print_of["config_sha256"]})
    say()
    heads = ("point", "layers", "kind", "shape", "meaning")
    table(heads, [[row[head] for head in heads] for row in points])


@app.command()
def doctor(
    model: ModelArgument,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Run the six-part self-check and show every comparison; exit 1 if a part fails."""
    opened = open_model(model, dtype=dtype.value, device=device, check=False)
    from mechscope.models.probe import tolerance_of
    from mechscope.models.self_check import check_model

    findings = check_model(opened)
    passed = all(finding.holds for finding in findings)
    if as_json:
        rows = [vars(finding) for finding in findings]
        emit({"model": model, "passed": passed, "tolerance": tolerance_of(opened), "findings": rows})
    else:
        heads = ("part", "holds", "difference", "what was compared")
        table(
            heads, [(f.part, "yes" if f.holds else "NO", f"{f.difference:.1e}", _told(f)) for f in findings]
        )
        n_failed = sum(not finding.holds for finding in findings)
        verdict = "healthy" if passed else f"{n_failed} of {len(findings)} comparisons fail"
        say(
            f"\n{model} ({opened.binding.anatomy.family}): {verdict}; a difference is a fraction of the compared"
        )
        say(f"tensor's range, the limit in this dtype is {tolerance_of(opened):g}")
    if not passed:
        raise typer.Exit(1)


@app.command()
def behaviors(model: ModelArgument, as_json: JsonOption = False) -> None:
    """List the behaviours that can be written in a model's tokens, with their pairs and a prompt of each."""
    opened = open_model(model)
    from mechscope.behaviors import load, names

    found = [load(name, opened) for name in names(opened)]
    rows = [
        {
            "name": entry.name,
            "source": entry.provenance.source,
            "pairs": entry.sizes,
            "metric": entry.metric.kind,
            "example": list(entry.train.texts[0]),
        }
        for entry in found
    ]
    if as_json:
        emit({"model": model, "behaviors": rows})
        return
    heads = ("behavior", "source", "train", "validation", "held out", "metric", "a clean prompt")
    table(
        heads,
        [(r["name"], r["source"], *r["pairs"].values(), r["metric"], r["example"][0].strip()) for r in rows],
    )


def sizes_of(model: "Model") -> dict[str, Any]:
    """What a model is, by name."""
    return {
        "name": model.identity.name,
        "family": model.binding.anatomy.family,
        "class": type(model.hf).__name__,
        "parameters": model.fingerprint.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "layers": model.n_layers,
        "heads": model.n_heads,
        "key/value heads": model.n_kv_heads,
        "context": model.n_context,
        **{name: size for name, size in model.sizes.items() if name not in ("head", "kv_head")},
    }


def tokenizer_facts(model: "Model") -> dict[str, Any]:
    """Class, size and special tokens; empty where there is none."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return {}
    special = {"beginning": tokenizer.bos_token, "end": tokenizer.eos_token, "padding": tokenizer.pad_token}
    named = {name: repr(token) if token else "none" for name, token in special.items()}
    return {"class": type(tokenizer).__name__, "size": len(tokenizer), **named}


def point_rows(model: "Model") -> list[dict[str, Any]]:
    """One row a point that this model has: layers, formed or derived, shape, meaning."""
    layers: dict[str, list[int]] = {}
    for site in model.sites:
        layers.setdefault(site.point, []).extend(() if site.layer is None else (site.layer,))
    rows = {site.point: site.row for site in model.sites}
    return [
        {
            "point": name,
            "layers": _ranges(layers[name]),
            "kind": ("formed" if row.is_formed else "derived") + ("" if row.is_writable else ", read only"),
            "shape": "["
            + ", ".join(f"{model.sizes[a]} {a}" if a in model.sizes else a for a in row.axes)
            + "]",
            "meaning": row.meaning,
        }
        for name, row in rows.items()
    ]


def _ranges(layers: list[int]) -> str:
    if not layers:
        return "-"
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ", ".join(map(str, layers))


def _told(finding: Any) -> str:
    return f"{finding.what}: {finding.note}" if finding.note else finding.what
