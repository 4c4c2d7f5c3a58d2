"""Report: one HTML file that anybody can open, today offline and in ten years.

Owns: the page around the blocks: head, contents, sections, record.
Invariant: the file asks nothing of a network, holds the style and the script once, and its own policy lets
no script run but that one: even markup that slipped through would not execute.

It writes no file (records is a sibling): the caller saves `to_html()` with `records.files.save_text`.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mechscope.figures.block import Block, asset
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.prose import Verdict, inline


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass
class Report:
    """A page under construction: `Report("IOI in village").add(Section(...)).add(...).to_html()`.

    Args:
        title: What was investigated.
        subtitle: One line: of which model, when.
        verdict: The summary at the head; several where there are several claims; or None.
        record: What is needed to run it again, by name: fingerprint, versions, seed, hashes.
    """

    title: str
    subtitle: str = ""
    verdict: Verdict | Sequence[Verdict] | None = None
    record: Mapping[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)

    def add(self, section: Section) -> "Report":
        """This report, with one more section at its end."""
        self.sections.append(section)
        return self

    def to_html(self) -> str:
        """The whole page as text. The same report gives the same bytes."""
        script = asset("figures.js")
        fingerprint = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{fingerprint}'"
        )
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", self.title),
            element("style", Markup(asset("figures.css"))),
        )
        body = element("body", self._page(), element("script", Markup(script)), class_="ms ms-page")
        return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"

    def _page(self) -> Markup:
        named = [(f"{i}-{_slug(section.title)}", section) for i, section in enumerate(self.sections, start=1)]
        links = [element("li", element("a", section.title, href=f"#{name}")) for name, section in named]
        header = element(
            "header",
            element("h1", self.title),
            element("p", inline(self.subtitle), class_="ms-subtitle") if self.subtitle else None,
            *(verdict.markup() for verdict in self._verdicts()),
        )
        contents = element("nav", element("ol", *links), aria_label="Contents") if len(links) > 1 else None
        parts = [
            element(
                "section",
                element("h2", section.title),
                *(block.markup() for block in section.blocks),
                id=name,
            )
            for name, section in named
        ]
        return joined(contents, element("main", header, *parts, self._footer()))

    def _verdicts(self) -> Sequence[Verdict]:
        if self.verdict is None:
            return ()
        return (self.verdict,) if isinstance(self.verdict, Verdict) else self.verdict

    def _footer(self) -> Markup | None:
        if not self.record:
            return None
        facts = [joined(element("dt", name), element("dd", value)) for name, value in self.record.items()]
        return element("footer", element("h2", "Record"), element("dl", *facts))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
