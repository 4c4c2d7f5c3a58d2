"""Pair files: a user's prompts from CSV or JSON lines, with line numbers for whatever is wrong.

Owns: the columns and how a cell is read. Refuses nothing by itself: it returns the rows that can be read and the
problems, so that the caller can add those that only a tokenizer finds and refuse once.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechscope.data.pairs import PromptPair
from mechscope.data.splits import SPLITS
from mechscope.records.pickles import refuse_unless_file, refuse_unless_safe
from mechscope.vocabulary.errors import BadFile, BadPairs

REQUIRED = ("clean", "corrupt", "answer")
OPTIONAL = ("wrong", "entities", "template", "split")
ALIASES = {"corrupted": "corrupt", "answers": "answer", "entity": "entities", "wrongs": "wrong"}
SEPARATOR = "|"
"""Several answers or entities in one CSV cell; JSON has lists."""


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """What a file holds.

    Args:
        pairs: Rows that could be read, in order; `origin` is the line.
        splits: Per pair, its split; () if the file names none.
        has_entities: Whether any row names an entity.
        ignored: Columns that mean nothing here.
        problems: What is wrong with the others, with line numbers.
        n_rows: Rows of the file.
    """

    pairs: tuple[PromptPair, ...]
    splits: tuple[str, ...]
    has_entities: bool
    ignored: tuple[str, ...]
    problems: tuple[str, ...]
    n_rows: int


def read_pair_file(path: str | Path, *, glue: str = " ") -> PairRows:
    """Read a ".csv", ".tsv", ".jsonl" or ".json" (a list) file of pairs.

    Args:
        path: The file, UTF-8. Columns clean, corrupt, answer; wrong, entities, template and split if there are.
        glue: What stands between a prompt and its answer.

    Raises:
        BadFile: missing, empty, not UTF-8, or of another ending.
        BadPairs: columns are missing or unknown.
    """
    path = Path(path)
    rows = list(_rows(path))
    if not rows:
        raise BadFile(
            f"{path.name} holds no pairs.", got=path, instead=f"columns {', '.join(REQUIRED)} and rows"
        )
    names = {_column(name) for _, row in rows if isinstance(row, Mapping) for name in row}
    _refuse_columns(path, names)
    read = [_read(row, f"line {line}", glue) for line, row in rows]
    good = [item for item in read if not isinstance(item, str)]
    problems = [item for item in read if isinstance(item, str)]
    splits = tuple(split for _, split in good)
    if any(splits) and not all(splits):
        missing = [pair.origin for pair, split in good if not split]
        problems += [f"{where}: no split, while other rows name theirs" for where in missing]
    return PairRows(
        pairs=tuple(pair for pair, _ in good),
        splits=splits if any(splits) else (),
        has_entities=any(pair.entities for pair, _ in good),
        ignored=tuple(sorted(names - {*REQUIRED, *OPTIONAL})),
        problems=tuple(problems),
        n_rows=len(rows),
    )


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    refuse_unless_file(path)
    refuse_unless_safe(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path.name} is not UTF-8 text.", got=path, because=str(error)) from error
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        yield from _table(text, path, delimiter="\t" if ending == ".tsv" else ",")
    elif ending == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, _json(line)
    elif ending == ".json":
        found = _json(text)
        if not isinstance(found, list):
            raise BadFile(
                f"{path.name} is no list of pairs.", got=type(found).__name__, instead="[{...}, {...}]"
            )
        yield from enumerate(found, start=1)
    else:
        raise BadFile(
            f"{path.name} is no file of pairs.", got=repr(path.suffix), instead=".csv, .tsv, .jsonl or .json"
        )


def _table(text: str, path: Path, *, delimiter: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadPairs(f"{path.name} has a column twice.", got=", ".join(twice), instead="one of each")
        for row in reader:
            yield reader.line_num, "more cells than columns" if None in row else row
    except csv.Error as error:
        raise BadFile(
            f"{path.name} is not a whole table.", got=f"line {reader.line_num}", because=str(error)
        ) from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"


def _column(name: Any) -> str:
    plain = str(name).strip().lower()
    return ALIASES.get(plain, plain)


def _refuse_columns(path: Path, names: set[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if names and missing:
        raise BadPairs(
            f"{path.name} lacks {' and '.join(repr(name) for name in missing)}.",
            got=f"columns {sorted(names)}",
            because="a pair is a clean prompt, a corrupt one, and the clean one's answer",
            instead=f"columns {', '.join((*REQUIRED, *OPTIONAL))}; the last four may be left out",
        )


def _read(row: Any, place: str, glue: str) -> tuple[PromptPair, str] | str:
    """A pair and its split, or what is wrong."""
    if not isinstance(row, Mapping):
        return f"{place}: {row if isinstance(row, str) else 'not an object with named fields'}"
    cells = {_column(name): value for name, value in row.items()}
    if len(cells) < len(row):
        return f"{place}: two columns for the same thing in {sorted(map(str, row))}"
    texts = {name: cells.get(name) for name in ("clean", "corrupt")}
    empty = [name for name, text in texts.items() if not isinstance(text, str) or _is_blank(text)]
    lists = {name: _listed(cells.get(name)) for name in ("answer", "wrong", "entities")}
    empty += [name for name, found in lists.items() if found is None]
    empty += ["answer"] if lists["answer"] == () else []
    split = str(cells.get("split") or "").strip()
    if empty:
        return f"{place}: {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty or no text"
    if split and split not in SPLITS:
        return f"{place}: there is no split {split!r}, only {', '.join(SPLITS)}"
    pair = PromptPair(
        clean=str(texts["clean"]),
        corrupt=str(texts["corrupt"]),
        answers=lists["answer"] or (),
        wrong=lists["wrong"] or (),
        entities=lists["entities"] or (),
        template=str(cells.get("template") or ""),
        glue=glue,
        origin=place,
    )
    return pair, split


def _listed(cell: Any) -> tuple[str, ...] | None:
    """One text or several; () for an absent cell, None for what is no text (a NaN, a number, an empty item)."""
    if cell is None or cell == "":
        return ()
    items = cell.split(SEPARATOR) if isinstance(cell, str) else cell
    items = [items] if type(items) is int else items
    if not isinstance(items, list):
        return None
    words: list[Any] = [str(item) if type(item) is int else item for item in items]
    if any(not isinstance(word, str) or _is_blank(word) for word in words):
        return None
    return tuple(word.strip() for word in words)


def _is_blank(text: str) -> bool:
    """True for white space and for the NaN that a table program writes into an empty cell."""
    return text.strip() in ("", "NaN", "nan")
