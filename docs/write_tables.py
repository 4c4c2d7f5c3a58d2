"""Write the tables of the documentation that come from code, between their markers. `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; a guard test compares as well.
"""

import re
import sys
from pathlib import Path

from mechscope.vocabulary.foreign_names import foreign_name
from mechscope.vocabulary.points import DIMENSIONS, POINTS

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def points_table() -> str:
    """Every point: axes, whether it is formed and writable, foreign name, meaning."""
    lines = ["| point | axes | kind | TransformerLens name | meaning |", "|---|---|---|---|---|"]
    for point in POINTS.values():
        kind = ("formed" if point.is_formed else "derived") + (", writable" if point.is_writable else "")
        foreign = foreign_name(point.name, 0)
        shown = f"`{foreign}`" if foreign else ""
        lines.append(f"| `{point.name}` | {' '.join(point.axes)} | {kind} | {shown} | {point.meaning} |")
    return "\n".join(lines)


def dimensions_table() -> str:
    """The legend of axis names."""
    return "\n".join(
        ["| axis | what it counts |", "|---|---|", *(f"| {k} | {v} |" for k, v in DIMENSIONS.items())]
    )


TABLES = {"points": points_table, "dimensions": dimensions_table}


def with_tables(page: str) -> str:
    """The page's text with each marked table written anew."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n\n{block[3]}", page)


def stale_pages() -> list[Path]:
    """Pages whose tables differ from the code."""
    return [path for path in sorted(DOCS.rglob("*.md")) if with_tables(path.read_text()) != path.read_text()]


if __name__ == "__main__":
    stale = stale_pages()
    if "--check" in sys.argv:
        sys.exit(f"run docs/write_tables.py: {[path.name for path in stale]}" if stale else 0)
    for path in stale:
        path.write_text(with_tables(path.read_text()))
        print(path.relative_to(DOCS))
