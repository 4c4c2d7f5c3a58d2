"""`mechscope graph`: the attribution graph of one prompt, as a page, a record and the front ends' JSON."""

from pathlib import Path
from typing import Annotated

import typer

from mechscope.cli.application import DeviceOption, Dtype, DtypeOption, JsonOption, ModelArgument, app
from mechscope.cli.opening import open_model
from mechscope.cli.terminal import emit, facts, say, table
from mechscope.vocabulary.errors import BadCommand

N_TOP = 12


@app.command()
def graph(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="One text.")],
    transcoders: Annotated[
        Path, typer.Option("--transcoders", help="A dictionary's folder, or one with a dictionary a layer.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for graph.html, graph.json and frontend.json.")],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help='A token to explain, or "A - B" for a difference; repeatable.'),
    ] = None,
    max_latents: Annotated[
        int, typer.Option("--max-latents", min=1, help="Trace so many of the most influential latents.")
    ] = 7500,
    row_share: Annotated[
        float,
        typer.Option(
            "--row-share",
            min=0.1,
            max=1.0,
            help="Keep the strongest effects with this share of each row's size.",
        ),
    ] = 1.0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Trace which latents and tokens make the model say what it says next, and write the graph."""
    targets = targets_of(target)
    opened = open_model(model, dtype=dtype.value, device=device)
    from mechscope.graphs.budget import Budget
    from mechscope.graphs.files import write_graph_files

    budget = Budget(max_latents=max_latents, row_share=row_share)
    found = write_graph_files(
        opened, prompt, transcoders=transcoders, out=out, targets=targets, max_latents=budget
    )
    top = [(node, float(found.influence[node.index])) for node in found.latents()[:N_TOP]]
    shares = {
        "replacement": found.scores.replacement,
        "completeness": found.scores.completeness,
        "nodes": len(found),
        "edges": found.adjacency.n_edges,
    }
    if as_json:
        latents = [{"node": n.name, "text": n.text, "influence": value} for n, value in top]
        emit({**shares, "targets": [t.label for t in found.targets], "latents": latents, "out": str(out)})
        return
    facts({name: f"{value:.3f}" if isinstance(value, float) else value for name, value in shares.items()})
    say()
    table(("latent", "influence", ""), [[n.name, f"{value:.3f}", n.text] for n, value in top])
    say(f"\n{out / 'graph.html'}")


def targets_of(given: list[str] | None) -> list[str | tuple[str, str]] | None:
    """Tokens and differences of tokens as they were typed; None leaves the choice to the graph."""
    if not given:
        return None
    targets: list[str | tuple[str, str]] = []
    for text in given:
        first, dash, second = text.partition(" - ")
        if dash and not (first.strip() and second.strip()):
            raise BadCommand(
                "A difference of tokens needs two of them.",
                got=f"--target {text!r}",
                instead='"Austin - Dallas"',
            )
        targets.append((first.strip(), second.strip()) if dash else text)
    return targets
