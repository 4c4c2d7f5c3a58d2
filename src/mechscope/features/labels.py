"""Labels: what latents are taken to mean, by whom, and how well that predicts them. One JSON file, replaced whole."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mechscope.records.files import open_json, save_json
from mechscope.records.record import now
from mechscope.vocabulary.errors import BadFile, EmptyPrompt

FORMAT = "mechscope labels 1"
LABELS = "labels.json"
"""The file of labels in an index's folder."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a label predicts its latent in one test.

    Args:
        test: "detection", "fuzzing" or "intruder".
        value: Fraction of questions answered rightly; 0.5 (intruder: one in the number of texts) is chance.
        low: Lower end of the 95% interval over questions.
        high: Upper end.
        chance: What guessing gives.
        n_questions: Questions asked.
        judge: Who answered.
    """

    test: str
    value: float
    low: float
    high: float
    chance: float
    n_questions: int
    judge: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a latent is taken to mean.

    Args:
        text: In words.
        by: "hand", or the name of who wrote it.
        scores: By test.
        created: When, ISO 8601.
    """

    text: str
    by: str = "hand"
    scores: Mapping[str, Score] = field(default_factory=dict)
    created: str = ""


class Labels:
    """The labels beside an index.

    Args:
        path: The JSON file; it need not be there yet.
        start: Labels to begin with where `path` is not there yet, such as those that ship with an index.
        read_only: Refuse to write, for what belongs to the package.

    Raises:
        BadFile: not a file of labels.
    """

    def __init__(self, path: str | Path, *, start: str | Path | None = None, read_only: bool = False) -> None:
        self.path, self.read_only = Path(path), read_only
        first = self.path if start is None or self.path.is_file() else Path(start)
        self._found: dict[int, Label] = _read(first) if first.is_file() else {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._found))

    def __contains__(self, latent: object) -> bool:
        return latent in self._found

    def __getitem__(self, latent: int) -> Label:
        return self._found[latent]

    def get(self, latent: int) -> Label | None:
        """A latent's label, or None."""
        return self._found.get(latent)

    def put(
        self, latent: int, text: str, *, by: str = "hand", scores: Mapping[str, Score] | None = None
    ) -> Label:
        """Set a label and write the file.

        Raises:
            EmptyPrompt: no words.
            BadFile: these labels ship with a bundled index.
        """
        if not text.strip():
            raise EmptyPrompt(
                "A label says something.", got=repr(text), instead="a few words, or labels.remove(latent)"
            )
        return self._keep(latent, Label(text=text.strip(), by=by, scores=dict(scores or {}), created=now()))

    def put_score(self, latent: int, score: Score) -> Label:
        """Add the score of a test to a latent's label, and write the file."""
        found = self._found[latent]
        return self._keep(latent, replace(found, scores={**found.scores, score.test: score}))

    def remove(self, latent: int) -> None:
        """Take a label away, and write the file."""
        self._refuse_unless_writable()
        self._found.pop(latent, None)
        self._save()

    def _keep(self, latent: int, label: Label) -> Label:
        self._refuse_unless_writable()
        self._found[latent] = label
        self._save()
        return label

    def _refuse_unless_writable(self) -> None:
        if self.read_only:
            raise BadFile(
                "The labels of a bundled index can't be changed.",
                got=self.path.name,
                because="they ship with the package, and the next installation would replace them",
                instead='a file of your own that begins with them: ms.features.open("village", labels="labels.json")'
                ", on the command line --labels FILE",
            )

    def _save(self) -> None:
        body = {str(latent): asdict(label) for latent, label in sorted(self._found.items())}
        save_json(self.path, {"format": FORMAT, "labels": body})


def _read(path: Path) -> dict[int, Label]:
    saved: Any = open_json(path)
    try:
        if saved["format"] != FORMAT:
            raise BadFile(f"{path.name} is of another format.", got=saved["format"], instead=FORMAT)
        return {int(latent): _label(told) for latent, told in saved["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(
            f"{path.name} is no file of labels.",
            got=path,
            because=repr(error),
            instead="the file as it was saved",
        ) from error


def _label(told: dict[str, Any]) -> Label:
    scores = {name: Score(**score) for name, score in told.pop("scores").items()}
    return Label(**told, scores=scores)
