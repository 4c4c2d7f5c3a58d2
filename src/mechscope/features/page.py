"""FeaturePage: everything about one latent, frozen; shows itself in a notebook and as one HTML file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechscope.figures.labelled import LabelledArray

if TYPE_CHECKING:
    from mechscope.features.labels import Label


@dataclass(frozen=True)
class Example:
    """A piece of text around a token at which the latent fires.

    Args:
        tokens: Texts of the tokens.
        values: The latent's activation at each; 0 where it does not fire.
        peak: Which of them it was chosen for.
        token: That token's number in the index.
        row: Its row of the text, over the whole index.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    token: int
    row: int

    @property
    def value(self) -> float:
        """The activation at the peak."""
        return self.values[self.peak]

    @property
    def text(self) -> str:
        """The piece as text; with spaces between tokens where the tokenizer keeps none."""
        return gap_of(self.tokens).join(self.tokens)


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of a band of activations.

    Args:
        name: "top", or the band: "quantiles 0.5 to 0.75".
        low: Smallest activation of the band.
        high: Largest.
        examples: From different rows, the strongest first.
    """

    name: str
    low: float
    high: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Related:
    """Another latent, and how near it is.

    Args:
        latent: Which.
        value: A cosine, or a correlation.
        label: What it is taken to mean, if anybody said.
    """

    latent: int
    value: float
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """How much a latent fires.

    Args:
        fires: Tokens at which it does.
        n_tokens: Tokens that count.
        density_low: Lower end of its density's 95% interval, over rows of the text.
        density_high: Upper end; of a latent that never fired, a bound on how often it may in such a text.
        mean: Mean activation where it fires.
        largest: Largest activation.
        smallest: Smallest one that is not zero.
        flag: "dead" if it never fires, "dense" if at more than a tenth of the tokens, else "".
        histogram: How often each size fell in each bin, four bins to the octave, [size].
    """

    fires: int
    n_tokens: int
    density_low: float
    density_high: float
    mean: float
    largest: float
    smallest: float
    flag: str
    histogram: LabelledArray

    @property
    def density(self) -> float:
        """Fraction of tokens at which it fires."""
        return self.fires / max(1, self.n_tokens)


@dataclass(frozen=True, kw_only=True)
class FeaturePage:
    """Everything about one latent.

    Args:
        latent: Its number.
        source: Model and site: "village, resid_post.2".
        activity: How much it fires.
        groups: Examples in context: the top ones, then by quantile.
        promoted: Tokens whose logits it raises most, in logits for each unit of activation; None if it does not
            write into the residual stream.
        suppressed: Tokens whose logits it lowers most.
        neighbors: By "decoder", "encoder" (cosines) and "behavior" (correlation of firing).
        together: Latents that fire where it fires, with the share of its firings.
        label: What it is taken to mean; None if nobody said.
        conventions: How the numbers were made.
    """

    latent: int
    source: str
    activity: Activity
    groups: tuple[ExampleGroup, ...]
    promoted: LabelledArray | None
    suppressed: LabelledArray | None
    neighbors: dict[str, tuple[Related, ...]]
    together: tuple[Related, ...]
    label: "Label | None"
    conventions: dict[str, Any]

    @property
    def top(self) -> tuple[Example, ...]:
        """The strongest examples."""
        return self.groups[0].examples if self.groups else ()

    @property
    def title(self) -> str:
        """The latent and its label."""
        return f"Latent {self.latent}" + (f": {self.label.text}" if self.label else "")

    def to_html(self) -> str:
        """The page as one file that needs no network."""
        from mechscope.features.rendering import report_of

        return report_of(self).to_html()

    def save_html(self, path: Any) -> None:
        """Write the page as one file."""
        from mechscope.records.files import save_text

        save_text(path, self.to_html())

    def plot(self) -> Any:
        """The histogram, in Plotly."""
        return self.activity.histogram.plot()

    def _repr_html_(self) -> str:
        from mechscope.features.rendering import fragment_of

        return fragment_of(self)

    def __repr__(self) -> str:
        activity = self.activity
        head = (
            f"{self.title} of {self.source}: fires at {activity.density:.3%} of {activity.n_tokens:,} tokens, "
            f"at most {activity.largest:.4g}{' (' + activity.flag + ')' if activity.flag else ''}"
        )
        lines = [f"  {one.value:8.4g}  {_marked(one)}" for one in self.top[:5]]
        if self.promoted is not None:
            lines.append("  raises " + ", ".join(map(repr, self.promoted.labels("token")[:6])))
        return "\n".join([head, *lines])


def _marked(example: Example, around: int = 8) -> str:
    low, high = max(0, example.peak - around), example.peak + around
    parts = [f"[{t}]" if i == example.peak else t for i, t in enumerate(example.tokens)]
    return gap_of(example.tokens).join(parts[low:high]).replace("\n", "\\n")


def gap_of(tokens: tuple[str, ...]) -> str:
    """What stands between tokens: nothing where they bring their spaces, else a space."""
    return "" if any(token[:1].isspace() for token in tokens) else " "
