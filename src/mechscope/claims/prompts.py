"""The prompts of the behaviours that a claim reads: the ones it was given, or made again from their recipes.

Behaviours are told apart by name, metric and the hashes of their prompts, so that a claim is tested on the data that it
was frozen about. Nothing is measured here. Refuses another behaviour of the name that a claim recorded.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mechscope.behaviors.rebuilding import rebuild_behavior
from mechscope.claims.generated_claims import refuse_unless_writable
from mechscope.claims.predictions import RecordedBehavior
from mechscope.interventions.generated_text import GeneratedText
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.records.canonical import canonical_json
from mechscope.vocabulary.errors import BadClaim

N_REFERENCE = 200
"""Train prompts whose activations set mean and resample ablations."""


@runtime_checkable
class PairedSplit(Protocol):
    """Prompts of one split, clean and corrupt, with what is measured on them."""

    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric
    entities: Sequence[tuple[str, ...]]
    templates: Sequence[str]

    @property
    def data_hash(self) -> str: ...


class ClaimPrompts:
    """Behaviours with their prompts, for one open model.

    Args:
        model: An open model, whose tokenizer reads a recipe that has to be followed again.
        behaviors: Behaviours that the claim or its predictions recorded, with their prompts.
        split: Which split is tested: "validation" where sizes are set that held-out prompts may contradict.
        most: So many of its prompts at most; 0 for all.
    """

    def __init__(
        self,
        model: Model,
        behaviors: Mapping[str, Any] | Sequence[Any] = (),
        *,
        split: str = "held_out",
        most: int = 0,
    ) -> None:
        self._model, self._split, self._most = model, split, most
        given = behaviors.values() if isinstance(behaviors, Mapping) else behaviors
        self._behaviors = {identity(behavior): behavior for behavior in given}
        self._given = {behavior.name for behavior in given}
        self._splits: dict[tuple[str, int | None], PairedSplit] = {}

    def live(self, behavior: Any) -> Any:
        """The behaviour with its prompts.

        Raises:
            BadClaim: Another behaviour of this name was given.
        """
        which = identity(behavior)
        if not isinstance(behavior, RecordedBehavior):
            self._behaviors.setdefault(which, behavior)
        if which not in self._behaviors:  # a claim or circuit remembers a recipe, not the prompts
            self._refuse_namesakes(behavior)
            self._behaviors[which] = rebuild_behavior(behavior.recipe(), self._model)
        return self._behaviors[which]

    def tested(self, behavior: Any, *, fresh_seed: int | None = None) -> PairedSplit:
        """The prompts that are tested, or the ones that `fresh_seed` draws; the same object every time.

        Raises:
            BadClaim: As for `live`.
            NoNextToken, PromptTooLong, MissingTokenizer: Text is to be written, and can't be.
        """
        key = (identity(behavior), fresh_seed)
        if key not in self._splits:
            live = self.live(behavior)
            split = getattr(live if fresh_seed is None else live.redraw(fresh_seed), self._split)
            if self._most:
                split = split.select(range(min(self._most, len(split))))
            if isinstance(split.metric, GeneratedText):
                refuse_unless_writable(self._model, split, split.metric)
            self._splits[key] = split
        return self._splits[key]

    def train(self, behavior: Any) -> Any:
        """All prompts that a search may read."""
        return self.live(behavior).train

    def reference(self, behavior: Any) -> Any:
        """The first `N_REFERENCE` train prompts, clean and corrupt."""
        train = self.train(behavior)
        return train.select(range(min(N_REFERENCE, len(train))))

    def _refuse_namesakes(self, behavior: RecordedBehavior) -> None:
        if behavior.name in self._given:
            raise BadClaim(
                f'another "{behavior.name}" than the claim was frozen about',
                got="prompts, answers or a metric that differ from its recipe",
                because="a claim says on which data it is tested, and these are others",
                instead="the behaviour as it was, or a new claim about this one",
            )


def identity(behavior: Any) -> str:
    """What makes two behaviours the same: name, metric, and the hashes of their prompts and labels."""
    recipe = behavior.recipe()
    hashes = {
        name: [split["data_sha256"], split["labels_sha256"]] for name, split in recipe["splits"].items()
    }
    return canonical_json({"name": behavior.name, "metric": recipe["metric"], "splits": hashes})
