"""A user's own prompts: from token ids, or from a file of texts.

Owns: how a list of pairs is divided into splits. Refuses bad rows all at once, with their line numbers.
Invariant: pairs that share an entity are in one split, and the recipe says how the pairs were grouped.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechscope.behaviors.behavior import Behavior, Provenance
from mechscope.behaviors.reading import Problem, refuse_problems, refuse_text, try_pairs
from mechscope.behaviors.split import split_of, usual_metric
from mechscope.data.pair_file import read_pair_file
from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.data.splits import MIN_GROUPS, SPLITS, assign, groups_of
from mechscope.interventions.metrics import Answers, answer_sets
from mechscope.models.inputs import Bos
from mechscope.models.model import Model
from mechscope.records.files import sha256_of
from mechscope.vocabulary.errors import BadPairs, PairLengthMismatch, ShapeError

Ids = Int[Tensor, "pair pos"] | Sequence[Sequence[int]]
AnswerIds = Int[Tensor, " pair"] | Sequence[int] | Sequence[Sequence[int]]


def from_tokens(
    clean: Ids,
    corrupt: Ids,
    *,
    answers: AnswerIds,
    wrong: AnswerIds | None = None,
    metric: str = "",
    splits: Sequence[str] | None = None,
    name: str = "own",
) -> Behavior:
    """A behaviour from token ids: for prompts made elsewhere, and for models without a tokenizer.

    Args:
        clean: Ids, [pair, pos], or a list of rows; rows may differ in length from pair to pair. Unpadded.
        corrupt: Ids of the same shape.
        answers: The id (or set of ids) that is right after each clean prompt.
        wrong: The id (or set) it is measured against; None for metrics that need none.
        metric: Kind of metric; by default logit difference, probability difference for sets, and
            log-probability without `wrong`.
        splits: "train", "validation" or "held_out" for each row. By default rows are dealt out, a third, a
            sixth and a half; with fewer than six different prompts all of them are train.
        name: What claims and reports call it.

    Raises:
        PairLengthMismatch: prompts or answers of different number or length.
        BadPairs: an answer that is also wrong, an unknown split, or prompts that do not differ.
    """
    rows = [_rows(side, name) for side, name in ((clean, "clean"), (corrupt, "corrupt"))]
    right = _answers(answers)
    foils = () if wrong is None else _answers(wrong)
    refuse_unless_paired(rows, right, foils)
    groups = groups_of([(f"clean {one}", f"corrupt {two}") for one, two in zip(*rows, strict=True)])
    pairs = [
        TokenPair(
            clean=one,
            corrupt=two,
            answers=right[row],
            wrong=foils[row] if foils else (),
            entities=(f"prompt {groups[row]}",),
            template="given",
        )
        for row, (one, two) in enumerate(zip(*rows, strict=True))
    ]
    settings = {"grouped_by": "prompt", "splits": "assigned" if splits is None else "given"}
    return of_pairs(
        pairs,
        name=name,
        metric=metric,
        chosen=list(splits) if splits is not None else assign([pair.entities for pair in pairs], seed=0),
        provenance=Provenance(source="tokens", settings=settings, notes=_too_few(groups, splits)),
    )


def from_pairs(
    path: str | Path,
    model: Model,
    *,
    metric: str = "",
    seed: int = 0,
    space: bool = True,
    name: str = "",
) -> Behavior:
    """A behaviour from a file of prompts: CSV, TSV, JSON lines, or a JSON list.

    Columns: `clean`, `corrupt`, `answer` (right after clean); if you have them `wrong` (right after corrupt, or the
    foil), `entities`, `template`, `split`. Several answers or entities stand in a list, in a CSV cell with "|" between.

    Args:
        path: The file.
        model: Its tokenizer cuts the prompts. It is not run.
        metric: Kind of metric; by default as in `from_tokens`.
        seed: Of the assignment to splits, where the file has no `split` column.
        space: Whether a space stands between a prompt and its answer.
        name: What claims and reports call it; the file's name by default.

    Raises:
        PairLengthMismatch: clean and corrupt differ in token length; both tokenisations are shown.
        BadPairs: other bad rows, all of them at once, with their lines; columns that are missing.
        BadFile: missing, empty, torn, or not UTF-8.
        NoNextToken: a masked language model.

    Caveat: without an `entities` column, pairs are kept together by their answers (or, where these are too few, by
        their prompts), which can't see that two prompts are about the same thing. The recipe says which was done.
    """
    refuse_text(model, "A file of prompts and answers")
    path = Path(path)
    rows = read_pair_file(path, glue=" " if space else "")
    found = try_pairs(model.reader, rows.pairs)
    problems = [Problem(kind="fields", text=text) for text in rows.problems]
    problems += [item for item in found if isinstance(item, Problem)]
    refuse_problems(sorted(problems, key=_line), n_pairs=rows.n_rows)
    pairs = [item for item in found if isinstance(item, TokenPair)]
    pairs, grouped_by = label_groups(pairs, rows.pairs, has_entities=rows.has_entities)
    groups = groups_of([pair.entities for pair in pairs])
    settings = {
        "file": path.name,
        "file_sha256": sha256_of(path),
        "seed": seed,
        "space": space,
        "grouped_by": grouped_by,
        "ignored_columns": list(rows.ignored),
        "splits": "given" if rows.splits else "assigned",
    }
    notes = [f"pairs of one {grouped_by} are kept in one split"] if not rows.has_entities else []
    notes += _unknown_words(pairs, model) + list(_too_few(groups, rows.splits or None))
    return of_pairs(
        pairs,
        name=name or path.stem,
        metric=metric,
        chosen=rows.splits or assign([pair.entities for pair in pairs], seed=seed),
        provenance=Provenance(source="file", settings=settings, notes=tuple(notes)),
        pad_id=model.reader.pad_id,
        bos="tokenizer",
    )


def label_groups(
    pairs: Sequence[TokenPair], written: Sequence[PromptPair], *, has_entities: bool
) -> tuple[list[TokenPair], str]:
    """Entities for pairs of a file that names none: the strictest grouping that leaves enough groups.

    Answer words first (pairs that share any are linked), then the pair of answers, then the prompts.

    Returns:
        The pairs with their entities and template, and by what they are grouped.
    """
    options = {
        "answer word": [(*pair.answers, *pair.wrong) for pair in written],
        "pair of answers": [("/".join(sorted((*pair.answers, *pair.wrong))),) for pair in written],
        "prompt": [(f"clean {pair.clean}", f"corrupt {pair.corrupt}") for pair in written],
    }
    if has_entities:
        options = {"entities": [pair.entities for pair in written]}
    enough = [kind for kind, labels in options.items() if len(set(groups_of(labels))) >= MIN_GROUPS]
    kind = enough[0] if enough else list(options)[-1]
    return [
        replace(pair, entities=tuple(names), template=pair.template or "given")
        for pair, names in zip(pairs, options[kind], strict=True)
    ], kind


def of_pairs(
    pairs: Sequence[TokenPair],
    *,
    name: str,
    metric: str,
    chosen: Sequence[str],
    provenance: Provenance,
    pad_id: int = 0,
    bos: Bos = "given",
) -> Behavior:
    """A behaviour of pairs whose splits are chosen.

    Raises:
        BadPairs: a split's name is unknown or missing, or splits share an entity or a prompt.
    """
    if len(chosen) != len(pairs) or not set(chosen) <= set(SPLITS):
        raise BadPairs(
            "Each pair needs the name of a split.",
            got=f"{len(chosen)} names for {len(pairs)} pairs: {sorted(set(chosen))}",
            instead=", ".join(SPLITS),
        )
    kind = metric or usual_metric(pairs)
    return Behavior(
        name=name,
        splits={
            split: split_of(
                split,
                [pair for pair, where in zip(pairs, chosen, strict=True) if where == split],
                behavior=name,
                metric=kind,
                pad_id=pad_id,
                bos=bos,
            )
            for split in SPLITS
            if split in chosen
        },
        provenance=provenance,
    )


def refuse_unless_paired(rows: Sequence[Sequence[tuple[int, ...]]], answers: Answers, wrong: Answers) -> None:
    """Refuse prompts and answers that do not belong together, all problems at once."""
    clean, corrupt = rows
    counts = {"clean": len(clean), "corrupt": len(corrupt), "answers": len(answers)}
    counts |= {"wrong": len(wrong)} if wrong else {}
    if len(set(counts.values())) > 1 or not clean:
        raise PairLengthMismatch(
            "Prompts and answers differ in number." if clean else "There are no pairs.",
            got=", ".join(f"{n} {what}" for what, n in counts.items()),
            because="row i of each belongs to pair i",
            instead="one clean prompt, one corrupt prompt and one answer for each pair",
        )
    unequal = [
        f"pair {row}: clean {list(one)}, corrupt {list(two)}"
        for row, (one, two) in enumerate(zip(clean, corrupt, strict=True))
        if len(one) != len(two)
    ]
    if unequal:
        raise PairLengthMismatch(
            f"{len(unequal)} pairs have prompts of different token lengths.",
            got="; ".join(unequal[:5]),
            because="a position of the corrupt prompt must have its counterpart in the clean one",
            instead="prompts of equal length",
        )
    problems = [f"pair {row} has no answer" for row, found in enumerate(answers) if not found]
    problems += [
        f"pair {row}: an answer is also wrong"
        for row in range(len(wrong))
        if set(wrong[row]) & set(answers[row])
    ]
    problems += [
        f"pair {row}: the prompts do not differ" for row in range(len(clean)) if clean[row] == corrupt[row]
    ]
    if problems:
        raise BadPairs(
            f"{len(problems)} pairs can't be used.",
            got="; ".join(problems[:5]),
            instead="mend or leave out these pairs",
        )


def _rows(side: Any, name: str) -> list[tuple[int, ...]]:
    if isinstance(side, Tensor):
        if side.ndim != 2 or side.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise ShapeError(
                f"{name} prompts are whole-number ids, [pair, pos].",
                got=f"shape {list(side.shape)}, {side.dtype}",
                instead="ids[None] for a single prompt",
            )
        side = side.tolist()
    rows = [tuple(row.tolist() if isinstance(row, Tensor) else row) for row in side]
    if not all(type(index) is int for row in rows for index in row):
        raise BadPairs(
            f"{name} holds something that is no token id.", got=str(rows)[:80], instead="whole numbers"
        )
    return rows


def _answers(given: Any) -> Answers:
    return answer_sets(given.tolist() if isinstance(given, Tensor) else given)


def _too_few(groups: Sequence[int], splits: Sequence[str] | None) -> tuple[str, ...]:
    n_groups = len(set(groups))
    if splits is not None or n_groups >= MIN_GROUPS:
        return ()
    return (f"{n_groups} independent {'pair' if n_groups == 1 else 'pairs'}: all of them are train",)


def _line(problem: Problem) -> int:
    return int(problem.text.split(":")[0].removeprefix("line "))


def _unknown_words(pairs: Sequence[TokenPair], model: Model) -> list[str]:
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return []  # GPT-2 names its end-of-text token here, and spells every word in bytes
    n = sum(unknown in (*pair.clean, *pair.corrupt) for pair in pairs)
    return [f"{n} of {len(pairs)} pairs hold words that the tokenizer does not know"] if n else []
