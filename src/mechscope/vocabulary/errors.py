"""The one error tree: every refusal says what, got, because, instead.

    MechscopeError
    ├── SiteError            UnknownSite, PointUnavailable, SiteAfterStop, AmbiguousSite, UnknownEdge
    ├── InputError           ShapeError, PositionOutOfRange, EmptyPrompt, PromptTooLong, NotOneToken,
    │                        UnreadableText, PairLengthMismatch, BadPairs, MissingTokenizer, BadCommand, BadProgram
    ├── ModelError           NotAModel, UnsupportedModel, SelfCheckFailed, NonFiniteWeights, ModelBusy,
    │                        TrainingMode, NoNextToken
    ├── InterventionError    UnresolvedIntervention, InterventionMismatch, NotSerializable
    ├── EvidenceError        BadClaim, ClaimEdited, HeldOutOpened, NotEnoughEvidence, NoGradient, NotReproduced
    ├── DictionaryError      UnknownGate, AmbiguousDictionary, DictionaryMismatch, FoldingError,
    │                        NonFiniteActivations
    ├── FileError            UnsafeFile, BadFile, ChecksumMismatch, DiskFull
    ├── RegistrationError    a method, family or point registered twice or half
    └── OptionalPackageMissing

Web, command line and notebook render the same four fields; `as_json` is the one JSON shape.
Each class has a page `docs/errors/<slug>.md`, and a guard test says so.
"""

import re
from typing import ClassVar


class MechscopeError(Exception):
    """Base of every refusal. `what` is one sentence; the other fields may be empty.

    Args:
        what: The refusal, naming the thing refused.
        got: What was given, as the caller would write it.
        because: Why it can't be done.
        instead: What to do instead; nearest valid names first.
    """

    slug: ClassVar[str] = "mechscope-error"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.slug = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, what: str, *, got: object = "", because: str = "", instead: str = "") -> None:
        self.what = what
        self.got = str(got)
        self.because = because
        self.instead = instead
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"{type(self).__name__}: {self.what}"]
        for label, text in (("got:", self.got), ("because:", self.because), ("instead:", self.instead)):
            if text:
                lines.append(f"  {label:<9} {text}")
        lines[-1] += f"   [docs/errors/{self.slug}]"
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.got, self.because, self.instead)

    def as_json(self) -> dict[str, str]:
        """The one JSON shape of an error, for `--json` and the web app."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "got": self.got,
            "because": self.because,
            "instead": self.instead,
            "docs": f"docs/errors/{self.slug}",
        }


def _rebuild(cls: type[MechscopeError], what: str, got: str, because: str, instead: str) -> MechscopeError:
    return cls(what, got=got, because=because, instead=instead)


class SiteError(MechscopeError):
    """A name of a place in the model can't be used."""


class UnknownSite(SiteError):
    """No point of that name exists, in ours or in a foreign vocabulary."""


class PointUnavailable(SiteError):
    """The point is known, but this architecture (or this layer) forms no such tensor, or it is not writable."""


class SiteAfterStop(SiteError):
    """A site was asked for that lies behind the place where the run stops."""


class AmbiguousSite(SiteError):
    """One site was needed and a pattern matched several or none."""


class UnknownEdge(SiteError):
    """A name of a node or an edge that is not of the right form, or that this model does not have."""


class InputError(MechscopeError):
    """Prompts, tokens or tensors that can't be used as given."""


class ShapeError(InputError):
    """A tensor's shape disagrees with the point's shape or with the tokens."""


class PositionOutOfRange(InputError):
    """A position, head, unit, layer or row that does not exist."""


class EmptyPrompt(InputError):
    """A prompt with no tokens."""


class PromptTooLong(InputError):
    """A prompt longer than the model's context."""


class NotOneToken(InputError):
    """A word that had to be a single token is none or several."""


class UnreadableText(InputError):
    """A text holds words that the tokenizer has no token for."""


class PairLengthMismatch(InputError):
    """The clean and the corrupt prompt have different token lengths."""


class BadPairs(InputError):
    """A file or list of prompt pairs with missing, empty or contradictory fields."""


class MissingTokenizer(InputError):
    """Text was given to a model that was opened without a tokenizer."""


class BadCommand(InputError):
    """A command line that can't be read: an unknown option, a missing argument, a value of the wrong kind."""


class BadProgram(InputError):
    """A program that can't be compiled into weights, or run as written; every problem is told at once."""


class ModelError(MechscopeError):
    """A model that can't be opened or used."""


class NotAModel(ModelError):
    """The folder, id or object is not a transformer that can be opened."""


class UnsupportedModel(ModelError):
    """A model whose structure no adapter describes and that could not be matched."""


class SelfCheckFailed(ModelError):
    """The opened model does not do what its adapter says: refused with family, layer and difference."""


class NonFiniteWeights(ModelError):
    """The checkpoint holds NaN or infinite weights."""


class ModelBusy(ModelError):
    """The model is in use: by another thread, or inside an `intervening` block."""


class TrainingMode(ModelError):
    """The model is in training mode, so dropout would make results random."""


class NoNextToken(ModelError):
    """The question is about the next token, and the model predicts each position's own."""


class InterventionError(MechscopeError):
    """An intervention that can't be carried out as written."""


class UnresolvedIntervention(InterventionError):
    """An ablation by mean, resample or optimal value has no tensors yet."""


class InterventionMismatch(InterventionError):
    """The intervention does not fit the site: width, heads, units, basis or kind of point."""


class NotSerializable(InterventionError):
    """A function or live object in a place that must be saved."""


class EvidenceError(MechscopeError):
    """A claim or a record that can't be trusted as given."""


class BadClaim(EvidenceError):
    """A claim whose statement, mechanism or predictions are incomplete or contradict each other."""


class ClaimEdited(EvidenceError):
    """A claim file whose contents no longer match its id."""


class HeldOutOpened(EvidenceError):
    """A held-out split was read where it must stay closed."""


class NotEnoughEvidence(EvidenceError):
    """A ratio or a statistic was asked for that the data cannot support."""


class NoGradient(EvidenceError):
    """A metric that has no gradient, or a zero one, in the run where it is taken."""


class NotReproduced(EvidenceError):
    """A recomputed record differs from the saved one beyond its tolerance."""


class DictionaryError(MechscopeError):
    """A dictionary whose settings or tensors can't be right."""


class UnknownGate(DictionaryError):
    """A gate rule that is not known, or one without what it needs."""


class AmbiguousDictionary(DictionaryError):
    """A dictionary's file that leaves open how codes are computed, or where; the message asks the question."""


class DictionaryMismatch(DictionaryError):
    """A dictionary and a model, site, tokenizer or text that do not belong together."""


class FoldingError(DictionaryError):
    """A normalisation that is folded already, or that can't be folded into weights."""


class NonFiniteActivations(DictionaryError):
    """Activations or a training loss with NaN or infinite values."""


class FileError(MechscopeError):
    """A file that can't be read or written."""


class UnsafeFile(FileError):
    """A pickle, or another file that would run code when it is opened."""


class BadFile(FileError):
    """A file that is missing, torn, or not what its name says."""


class ChecksumMismatch(FileError):
    """A file whose contents differ from the checksum on record."""


class DiskFull(FileError):
    """There is no room left to write; what was written before is whole."""


class RegistrationError(MechscopeError):
    """Something was registered twice, or without all its parts."""


class OptionalPackageMissing(MechscopeError):
    """A feature needs an extra that is not installed."""
