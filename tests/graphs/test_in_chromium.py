"""The page in a browser: its script is run by headless Chromium, and asked what a person would see."""

import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.view import graph_page

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

VISIT = (Path(__file__).parent / "visitor.js").read_text()


def dom_of(page: str, folder: Path) -> str:
    """The document after Chromium ran the page's script."""
    (folder / "page.html").write_text(page)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--dump-dom"]
    command = [
        str(CHROMIUM),
        *words,
        f"--user-data-dir={folder / 'profile'}",
        (folder / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


@cache
def graph() -> AttributionGraph:
    """With ten targets, as many as there are by default at most."""
    whole = attribution_graph(exact_model("llama"), dictionaries("llama"), prompt(), targets=list(range(10)))
    return whole.prune(0.9)


def visited(page: str, names: list[str], folder: Path) -> dict[str, Any]:
    """What a visitor saw who did what `visitor.js` does."""
    free = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", page)  # which would keep the visitor out
    assert free != page
    script = f"<script>{VISIT.replace('NAMES', json.dumps(names))}</script></body>"
    found = re.search(
        r'<pre id="said">(.*?)</pre>', dom_of(free.replace("</body>", script), folder), re.DOTALL
    )
    assert found is not None, "the visit ended in an error"
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_page_draws_itself_under_its_own_policy(tmp_path: Path) -> None:
    dom = dom_of(graph_page(graph()), tmp_path)
    assert dom.count('class="msg-node msg-') >= len(graph())


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_visitor_points_pins_groups_searches_and_slides(tmp_path: Path) -> None:
    one, (first, second) = graph(), graph().latents()[:2]
    said = visited(graph_page(one), [first.name, second.name], tmp_path)
    assert "errors" not in said
    assert said["drawn"] == said["again"] == len(one)
    assert (said["lookedAt"], said["pointedAt"], said["back"]) == (first.name, second.name, first.name)
    assert said["edges"] == len(one.inputs(first, 10**6)) + len(one.outputs(first, 10**6))
    assert (said["boxesBefore"], said["pinnedOne"], said["pinnedTwo"], said["boxesAfter"]) == (0, 1, 2, 0)
    assert not said["canGroupOne"]
    assert said["chips"] == ["the pair (2)"] and said["grouped"] == ["the pair"] and said["chipsLeft"] == 0
    names = [one.nodes.name(i) for i in range(len(one))]
    matching = [name for name in names if "mlp_in.1/" in name]
    assert said["found"] == len(matching) > 0 and said["foundFirst"] == matching[0] and said["foundNone"] == 0
    inner = [*one.nodes.of("latent"), *one.nodes.of("error")]
    kept = sum(float(f"{one.cumulative[i]:.4g}") <= 0.3 for i in inner)
    assert said["fewer"] == kept + len(one) - len(inner) < len(one)
    assert said["shown"].startswith(f"30% of influence: {kept} of {len(inner)}")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_names_of_ten_targets_do_not_overprint_each_other(tmp_path: Path) -> None:
    names = [node.name for node in graph().latents()[:2]]
    said = visited(graph_page(graph()), names, tmp_path)
    assert said["labels"] == 10 and said["overprinted"] == 0
