"""`mechscope features`: build an index of what latents do, search it, and look at one latent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechscope.cli.application import DeviceOption, Dtype, DtypeOption, JsonOption, app
from mechscope.cli.opening import open_model, open_recorded
from mechscope.cli.terminal import bar, emit, facts, say, table
from mechscope.vocabulary.errors import BadCommand

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex
    from mechscope.features.page import FeaturePage

N_LISTED = 12


@app.command()
def features(
    place: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_INDEX",
            help='An index: its folder, "village", "village/mlp.3"; to build: a model.',
        ),
    ],
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", help="Build: the dictionary's folder.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Build: a text file, one document a line.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Build: the index's folder; goes on there. With --latent: a page."),
    ] = None,
    search: Annotated[str | None, typer.Option("--search", help="Latents for a text.")] = None,
    latent: Annotated[int | None, typer.Option("--latent", help="Everything about one latent.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="With --latent: say what it means.")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="A file of your own labels; begins with the index's.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="With --search: run the model on the text.")] = False,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Index what every latent of a dictionary does over a text; search it; look at one latent."""
    _refuse_contradictions(dictionary, text, out=out, latent=latent, label=label)
    if dictionary is not None and text is not None and out is not None:
        index = _built(place, dictionary, text, out=out, dtype=dtype.value, device=device)
    else:
        from mechscope.features.index import open_index

        index = open_index(place, labels=labels)
        if run and search is not None:
            recorded = str(index.manifest.origin.model["name"])
            index = index.attached(open_recorded(None, recorded, dtype=dtype.value, device=device))
    if latent is not None:
        if label is not None:
            index.label(latent, label)
        _show_page(index[latent], out if dictionary is None else None, as_json=as_json)
    elif search is not None:
        _show_hits(index, search, as_json=as_json)
    else:
        _show_index(index, as_json=as_json)


def _refuse_contradictions(
    dictionary: Path | None, text: Path | None, *, out: Path | None, latent: int | None, label: str | None
) -> None:
    if (dictionary is None) != (text is None) or (dictionary is not None and out is None):
        raise BadCommand(
            "Building an index needs a dictionary, a text and a folder.",
            got=f"--dictionary {dictionary}, --text {text}, --out {out}",
            instead="mechscope features MODEL --dictionary FOLDER --text FILE --out FOLDER",
        )
    if dictionary is None and out is not None and latent is None:
        raise BadCommand(
            "There is nothing to write.",
            got=f"--out {out}",
            instead="--latent N --out page.html, or --dictionary",
        )
    if label is not None and latent is None:
        raise BadCommand(
            "A label is of a latent.", got=f"--label {label!r}", instead="--latent N --label TEXT"
        )


def _built(model: str, dictionary: Path, text: Path, *, out: Path, dtype: str, device: str) -> "FeatureIndex":
    opened = open_model(model, dtype=dtype, device=device)
    from mechscope.dictionaries.opening import open_dictionary
    from mechscope.features.building import build

    found = open_dictionary(dictionary)
    with bar() as tell:
        report = (
            None if tell is None else lambda done, total: tell(f"{done:,} of {total:,} tokens", done / total)
        )
        return build(opened, found, text, folder=out, report=report)


def _show_index(index: "FeatureIndex", *, as_json: bool) -> None:
    statistics = index.statistics
    order = statistics.total.argsort(kind="stable")[::-1][:N_LISTED].tolist()
    told: dict[str, Any] = {
        "index": str(index.folder),
        "of": index.source,
        "latents": index.n_latents,
        "tokens": index.n_tokens,
        "active a token": float(statistics.fires.sum() / max(1, index.n_tokens)),
        "dead": len(index.dead()),
        "dense": len(index.dense()),
        "labelled": len(index.labels),
        **_card_of(index),
    }
    rows = [
        {
            "latent": i,
            "density": float(statistics.density[i]),
            "mean": float(statistics.mean[i]),
            "largest": float(statistics.largest[i]),
            "label": found.text if (found := index.labels.get(i)) else "",
        }
        for i in order
    ]
    if as_json:
        emit({**told, "most active": rows})
        return
    facts({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in told.items()})
    say()
    _rows(rows)


def _card_of(index: "FeatureIndex") -> dict[str, Any]:
    """Figures of a dictionary that ships with a bundled model, and the names of the others."""
    from mechscope.features.cards import open_card
    from mechscope.features.shipped import bundled_indexes

    card = open_card(index.folder)
    figures = {} if card is None else card["figures"]
    told: dict[str, Any] = {
        shown: figures[name]["value"]
        for name, shown in (("fvu", "FVU"), ("ce_recovered", "loss recovered"))
        if name in figures
    }
    model = str(index.manifest.origin.model["name"])
    others = bundled_indexes(model)
    if index.folder in others.values():
        told["others"] = ", ".join(
            f"{model}/{site}" for site, place in others.items() if place != index.folder
        )
    return told


def _show_hits(index: "FeatureIndex", query: str, *, as_json: bool) -> None:
    hits = [
        {"latent": hit.latent, "score": hit.score, "why": hit.why, "label": hit.label}
        for hit in index.search(query).hits
    ]
    if as_json:
        emit({"query": query, "hits": hits})
        return
    say(f"{len(hits)} latents for {query!r} in {index.source}")
    if hits:
        _rows(hits)


def _show_page(page: "FeaturePage", out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        page.save_html(out)
    if not as_json:
        say(repr(page))
        if out is not None:
            say(f"\n{out}")
        return
    from mechscope.features.exports import feature_json

    label = None if page.label is None else page.label.text
    emit({**feature_json(page, page.source), "label": label, "page": None if out is None else str(out)})


def _rows(rows: list[dict[str, Any]]) -> None:
    cells = [[f"{v:.4g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    table(tuple(rows[0]), cells)
