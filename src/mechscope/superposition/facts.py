"""100 facts in 30 neurons: a layer of ReLUs stores more facts than it has neurons, and no neuron means one fact.

Each fact is a pair (one of 10 first names, one of 10 last names) with a random attribute. Names are given as two
one-hot vectors, so no name alone says the attribute, and a model without neurons can't know it. Owns the training
of many widths and seeds at once, and what ablating each neuron does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechscope.records.seeds import seed_for
from mechscope.superposition.toy import descend
from mechscope.vocabulary.errors import InputError

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray


@dataclass(frozen=True, kw_only=True)
class FactSettings:
    """Fact tables that are learnt.

    Args:
        n_first: First names.
        n_last: Last names; there are n_first * n_last facts.
        n_attributes: Answers; chance is 1 / n_attributes.
        widths: Hidden neurons, one row of models each. 0 is a linear readout of the names; no other has one.
        n_seeds: Tables and models a width.
        n_steps: Of Adam, on all facts at once.
        seed: Root of the seeds.
    """

    n_first: int = 10
    n_last: int = 10
    n_attributes: int = 10
    widths: tuple[int, ...] = (0, 5, 10, 20, 30, 60)
    n_seeds: int = 4
    n_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.widths, default=-1) < 0 or self.n_attributes < 2:
            raise InputError(
                "These settings hold no facts.",
                got=f"widths {self.widths}, {self.n_attributes} attributes",
                instead="widths of 0 or more, and two attributes or more",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class LearntFacts:
    """Trained models on their tables; width by seed.

    Args:
        settings: Theirs.
        accuracy: Share of facts answered right.
        answers: The tables.
        fires_on: Which neuron is on for which fact; neurons beyond a model's width never are.
        needed_by: Which facts rest on a neuron: right, and a quarter or more of the margin over the best wrong
            answer is lost when the neuron is set to its mean.
    """

    settings: FactSettings
    accuracy: Float[Tensor, "width seed"]
    answers: Int[Tensor, "width seed fact"]
    fires_on: Bool[Tensor, "width seed fact neuron"]
    needed_by: Bool[Tensor, "width seed fact neuron"]

    def neurons_of(self, width: int) -> tuple[Float[Tensor, "seed neuron"], Float[Tensor, "seed neuron"]]:
        """For models of this width: how many facts each neuron fires on, and how many need it."""
        row = self.settings.widths.index(width)
        fires = self.fires_on[row, :, :, :width].float().sum(1)
        return fires, self.needed_by[row, :, :, :width].float().sum(1)

    def array(self) -> "LabelledArray":
        """Accuracy by width: the mean over seeds, from the worst to the best."""
        from mechscope.figures.labelled import LabelledArray

        return LabelledArray(
            self.accuracy.mean(1).numpy(),
            ("neurons",),
            coords={"neurons": self.settings.widths},
            unit="share of facts",
            title=f"{self.answers.shape[2]} facts by number of neurons",
            conventions={"whiskers": "worst and best seed", "chance": 1 / self.settings.n_attributes},
            low=self.accuracy.amin(1).numpy(),
            high=self.accuracy.amax(1).numpy(),
        )


def learn_facts(settings: FactSettings | None = None) -> LearntFacts:
    """Train all widths and seeds together, then ablate every neuron of every model.

    Cost: seconds on one core.
    """
    settings = settings or FactSettings()
    generator = torch.Generator().manual_seed(seed_for(settings.seed, "facts"))
    n_models, most = len(settings.widths) * settings.n_seeds, max(*settings.widths, 1)
    keys, n_facts = _keys(settings), settings.n_first * settings.n_last
    answers = torch.randint(0, settings.n_attributes, (n_models, n_facts), generator=generator)
    widths = torch.tensor(settings.widths).repeat_interleave(settings.n_seeds)
    exists = (torch.arange(most) < widths[:, None])[:, None]

    def new(*shape: int, size: float) -> Tensor:
        return (torch.randn(n_models, *shape, generator=generator) * size).requires_grad_()

    is_linear = (widths == 0)[:, None, None]
    reading, bias = new(keys.shape[1], most, size=0.5), new(1, most, size=0.1)
    writing, direct = (
        new(most, settings.n_attributes, size=0.3),
        new(keys.shape[1], settings.n_attributes, size=0.1),
    )

    offset = new(1, settings.n_attributes, size=0.1)

    def hidden() -> Tensor:
        return torch.relu(keys @ reading + bias) * exists

    def logits_of(neurons: Tensor) -> Tensor:
        return neurons @ writing + keys @ direct * is_linear + offset

    def loss() -> Tensor:
        logits = logits_of(hidden()).flatten(0, 1)
        return (
            functional.cross_entropy(logits, answers.flatten(), reduction="none").view(n_models, -1).mean(1)
        )

    descend(loss, [reading, bias, writing, direct, offset], n_steps=settings.n_steps, learning_rate=0.03)
    with torch.no_grad():
        neurons = hidden()
        logits = logits_of(neurons)
        right = logits.argmax(2) == answers
        # without neuron j: its own contribution beyond its mean, taken out of the logits
        beyond_mean = neurons - neurons.mean(1, keepdim=True)
        without = logits[:, :, None] - beyond_mean[..., None] * writing[:, None]
        before = margins(logits[:, :, None], answers)
        loses = margins(without, answers) < 0.75 * before
    shape = (len(settings.widths), settings.n_seeds)
    return LearntFacts(
        settings=settings,
        accuracy=right.float().mean(1).view(shape),
        answers=answers.view(*shape, n_facts),
        fires_on=(neurons > 0).view(*shape, n_facts, most),
        needed_by=(right[:, :, None] & loses & exists).view(*shape, n_facts, most),
    )


def margins(
    logits: Float[Tensor, "model fact #neuron attribute"], answers: Int[Tensor, "model fact"]
) -> Float[Tensor, "model fact #neuron"]:
    """Logit of the right answer over the best wrong one."""
    index = answers[:, :, None, None].expand(*logits.shape[:3], 1)
    right = logits.gather(3, index)
    wrong = logits.scatter(3, index, -torch.inf).amax(3)
    return right[..., 0] - wrong


def _keys(settings: FactSettings) -> Float[Tensor, "fact name"]:
    """Each fact's two names, one-hot, side by side."""
    first = torch.arange(settings.n_first).repeat_interleave(settings.n_last)
    last = torch.arange(settings.n_last).repeat(settings.n_first)
    one_hot = functional.one_hot
    return torch.cat([one_hot(first, settings.n_first), one_hot(last, settings.n_last)], dim=1).float()
