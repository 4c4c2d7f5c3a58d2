"""Model: an open transformer. Runs, captures, gradients, generation and tokens; analyses are functions elsewhere.

Holds the user's own `transformers` model and leaves it as found after every call. One call at a time: a lock per
model refuses a second one instead of mixing two runs' hooks.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechscope.models import calibration, generation, resources
from mechscope.models.binding import Binding
from mechscope.models.cache import Cache, Name
from mechscope.models.extent import Extent, start_of
from mechscope.models.fingerprinting import fingerprint_of, tokenizer_sha256_of
from mechscope.models.frame import Frame
from mechscope.models.identity import Identity
from mechscope.models.inputs import Inputs, Reader, TokenBatch
from mechscope.models.limits import refuse_own_predictions
from mechscope.models.lock import held
from mechscope.models.preparing import differentiable_sites, listed, prepare_writes
from mechscope.models.run import Run
from mechscope.models.running import Order, forward
from mechscope.models.splicing import links_of, writes_of
from mechscope.models.weights import Weights
from mechscope.models.writing import writers_for
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import ShapeError, TrainingMode
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site


class Model:
    """An open transformer: `ms.load(...)` or `ms.wrap(...)` make one.

    Args:
        binding: The model bound to its sites.
        tokenizer: A transformers tokenizer or None.
        identity: Name and revision for records.
    """

    def __init__(self, binding: Binding, tokenizer: Any, *, identity: Identity) -> None:
        self.binding = binding
        self.tokenizer = tokenizer
        self.identity = identity
        self.weights = Weights(binding)
        self._reference_norms: dict[str, float] = {}

    @property
    def hf(self) -> nn.Module:
        """The transformers model, unmodified."""
        return self.binding.hf

    @property
    def sites(self) -> list[Site]:
        """Every site that can be read, in the order of the forward pass."""
        return self.binding.readable

    @property
    def n_layers(self) -> int:
        return self.binding.n_layers

    @property
    def n_heads(self) -> int:
        return self.binding.anatomy.attention.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.binding.anatomy.attention.n_kv_heads

    @property
    def d_head(self) -> int:
        return self.binding.anatomy.attention.d_head

    @cached_property
    def d_model(self) -> int:
        return int(self.weights["W_E"].shape[1])

    @cached_property
    def d_vocab(self) -> int:
        return int(self.weights["W_E"].shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["W_E"].dtype

    @property
    def device(self) -> torch.device:
        return self.binding.embedding_device

    @property
    def n_context(self) -> int:
        """Longest prompt, in tokens."""
        return resources.context_length(self.hf.config)  # pyright: ignore[reportArgumentType]

    @cached_property
    def reader(self) -> Reader:
        """Turns text and ids into batches."""
        return Reader(self.tokenizer, self.d_vocab, self.n_context)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes that do not depend on the prompt, by dimension name."""
        return resources.axis_sizes(self)

    @cached_property
    def fingerprint(self) -> ModelFingerprint:
        """Which weights, in which precision; computed once, so weights must not be changed behind our back."""
        return fingerprint_of(
            self.hf,
            name=self.identity.on_record,
            family=self.binding.anatomy.family,
            revision=self.identity.revision,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Hash of what the tokenizer does; "" without one."""
        return tokenizer_sha256_of(self.tokenizer)

    def __repr__(self) -> str:
        return (
            f"<Model {self.identity.name}: {self.binding.anatomy.family}, {self.n_layers} layers, "
            f"{self.n_heads} heads, d_model {self.d_model}, {self.dtype}>"
        )

    def tokens(self, inputs: Inputs, *, bos: bool | None = None) -> TokenBatch:
        """Prompts as one left-padded batch; see `models.inputs`.

        Args:
            inputs: Text, ids, tensors, chat messages, or a batch.
            bos: True and False force the beginning-of-sequence token; None leaves it to the tokenizer.
        """
        return self.reader.batch(inputs, bos=bos)

    def str_tokens(self, inputs: Inputs, *, bos: bool | None = None) -> list[str] | list[list[str]]:
        """The tokens of one prompt (or of each prompt) as text."""
        batch = self.tokens(inputs, bos=bos)
        rows = [self.reader.strings(batch.row(i)) for i in range(len(batch))]
        return rows[0] if len(rows) == 1 else rows

    def token(self, word: str) -> int:
        """The id of a word that is one token.

        Raises:
            NotOneToken: the word is none or several; the message shows how it is cut.
        """
        return self.reader.token(word)

    def run(
        self,
        inputs: Inputs,
        *,
        interventions: Sequence[Write] = (),
        capture: str | Site | Sequence[str | Site] = (),
        stop_after: Name | None = None,
        start: tuple[Name, Tensor] | None = None,
        grad: bool = False,
        splice: Sequence[Any] = (),
    ) -> Run:
        """Run prompts once, under interventions, keeping what is asked for.

        Args:
            inputs: Text, ids, tensors, chat messages, or a `TokenBatch`, as `model.tokens(text, bos=False)` makes it.
            interventions: Applied in the order given where they meet.
            capture: Sites and patterns. A pattern means what is formed up to `stop_after`.
            stop_after: Last site to compute; logits are then None.
            start: ("resid_pre.L", value [batch, pos, d_model]): skip the layers below L.
            grad: Record the graph; captured tensors keep their gradients after `.backward()`.
            splice: Dictionaries in the forward pass, before the interventions; `cache["latents", dictionary]` are
                their codes. The error is kept; `(dictionary, "drop")` drops it.

        Raises:
            PointUnavailable, UnknownSite: a name that this model does not form.
            SiteAfterStop: an explicit site behind `stop_after` or before `start`.

        Cost: one forward pass up to `stop_after`, plus what is kept.
        """
        batch = self.tokens(inputs)
        frame = Frame.of(batch)
        stop = None if stop_after is None else self.binding.site(stop_after)
        begin = None if start is None else start_of(self, start, batch)
        extent = Extent(binding=self.binding, first_layer=None if begin is None else begin[0], stop=stop)
        wanted = extent.sites_of(capture)
        links = links_of(self, splice)
        spliced = [write for link in links for write in writes_of(link)]
        writes = prepare_writes(self, [*spliced, *listed(interventions)], frame)
        formed, maps_later = resources.formed_sites(self, wanted, [s for _, sites in writes for s in sites])
        extent.refuse_writes_before_it(writes)
        with self.ready():
            kept = forward(
                self.binding,
                frame,
                Order(
                    capture=tuple(formed),
                    writers=writers_for(writes, frame),
                    stop_after=None if stop is None else resources.last_formed(self.binding, stop),
                    start=begin,
                    keeps_calls=maps_later,
                    grad=grad,
                ),
            )
        cache = Cache(kept.tensors, batch, resources.cache_resources(self), calls=kept.calls)
        cache.latents = {id(link.spliced.codec): link for link in links}
        return Run(batch, kept.logits, cache)

    def run_with_cache(
        self,
        inputs: Inputs,
        *,
        interventions: Sequence[Write] = (),
        capture: str | Site | Sequence[str | Site] = "*",
        stop_after: Name | None = None,
        bos: bool | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"] | None, Cache]:
        """Run prompts and keep every formed point; scores and patterns are formed when you read them.

        `bos` as in `tokens`, the rest as in `run`.

        Returns:
            Logits [batch, pos, d_vocab] and the cache.

        Cost: one forward pass; tensors are kept by reference.
        """
        batch = self.tokens(inputs, bos=bos)
        run = self.run(batch, interventions=interventions, capture=capture, stop_after=stop_after)
        return run.logits, run.cache

    def open_cache(self, path: str | Path) -> Cache:
        """A cache that `Cache.save` wrote, read with this model's names and weights.

        Raises:
            BadFile: not a saved cache, or of sites that this model does not form.
        """
        return resources.open_cache(self, path)

    def logits(
        self, inputs: Inputs, *, interventions: Sequence[Write] = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of every position."""
        run = self.run(inputs, interventions=interventions)
        assert run.logits is not None
        return run.logits

    def loss(self, inputs: Inputs, *, per_token: bool = False, interventions: Sequence[Write] = ()) -> Tensor:
        """Cross entropy of each next token, in nats.

        Returns:
            The mean over all predicted tokens, or [batch, pos - 1] with NaN at padding.

        Raises:
            NoNextToken: a masked language model.
        """
        refuse_own_predictions(
            self.binding.anatomy,
            "`loss`",
            instead="-model.logits(masked).log_softmax(-1) at a masked position, in the column of its token",
        )
        batch = self.tokens(inputs)
        return resources.cross_entropy(
            self.logits(batch, interventions=interventions), batch, per_token=per_token
        )

    def top(
        self, inputs: Inputs, *, k: int = 5, interventions: Sequence[Write] = ()
    ) -> list[tuple[str, float]]:
        """The k most probable next tokens after one prompt, with probabilities (0 to 1).

        Of a masked language model: the k most probable tokens in the place of the prompt's one mask token.

        Raises:
            NoNextToken: a masked language model, and a prompt without one mask token.
            ShapeError: several prompts, or more tokens than there are.
        """
        batch = self.tokens(inputs)
        if not 1 <= k <= self.d_vocab:
            raise ShapeError("There are not so many tokens.", got=f"k={k}", instead=f"1 to {self.d_vocab}")
        if len(batch) != 1:
            raise ShapeError(
                "`top` is about one prompt.",
                got=f"{len(batch)} prompts",
                instead="one call a prompt, or model.logits(prompts)[:, -1].topk(k)",
            )
        column = resources.asked_column(self, batch)
        probabilities = self.logits(batch, interventions=interventions)[0, column].float().softmax(-1)
        values, indices = probabilities.topk(k)
        return list(zip(self.reader.strings(indices.tolist()), values.tolist(), strict=True))

    def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int = 40,
        interventions: Sequence[Write] = (),
        splice: Sequence[Any] = (),
        seed: int = 0,
        bos: bool | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts under interventions; see `models.generation.generate`.

        Args:
            inputs: As in `run`.
            max_new_tokens: Most tokens to add to each row.
            interventions: As in `run`, at every step.
            splice: As in `run`, at every step.
            seed: Of sampling.
            bos: As in `tokens`.
            options: More of `models.generation.Sampling`: temperature, top_p, returns, ...
        """
        settings = generation.Sampling(max_new_tokens=max_new_tokens, seed=seed, **options)
        spliced = [write for link in links_of(self, splice) for write in writes_of(link)]
        writes = [*spliced, *listed(interventions)]
        return generation.generate(self, inputs, interventions=writes, settings=settings, bos=bos)

    @contextmanager
    def intervening(
        self, interventions: Sequence[Write], *, splice: Sequence[Any] = ()
    ) -> Generator[nn.Module, None, None]:
        """Other people's code under our interventions: `with model.intervening([...]) as hf: hf.generate(...)`.

        The frame is read from the model's own calls: padding from the attention mask, positions from the cache.
        Dictionaries are spliced in as in `run`.
        """
        spliced = [write for link in links_of(self, splice) for write in writes_of(link)]
        follower = generation.Follower(self, [*spliced, *listed(interventions)])
        with self.ready(), follower.following() as hf:
            yield hf

    def gradients(
        self, inputs: Inputs, *, of: Any, at: str | Site | Sequence[str | Site]
    ) -> dict[Site, Tensor]:
        """Gradients of a scalar with respect to sites.

        Args:
            inputs: Prompts.
            of: Function from logits [batch, pos, d_vocab] to a scalar.
            at: Formed sites.

        Returns:
            By site, a tensor of the site's shape.

        Raises:
            PointUnavailable: a derived site, which the logits are not computed from.

        Cost: one forward and one backward pass.
        """
        sites = differentiable_sites(self, at)
        run = self.run(inputs, capture=sites, grad=True)
        with torch.inference_mode(False), torch.enable_grad():
            scalar = of(run.logits)
            if not isinstance(scalar, Tensor) or scalar.numel() != 1:
                raise ShapeError(
                    "Gradients are those of one number.",
                    got=f"shape {list(scalar.shape)}"
                    if isinstance(scalar, Tensor)
                    else type(scalar).__name__,
                    because="`of` must turn the logits into a scalar",
                    instead="sum or average over rows",
                )
            found = torch.autograd.grad(scalar, [run.cache[s] for s in sites], allow_unused=True)
        return {
            s: torch.zeros_like(run.cache[s]) if g is None else g for s, g in zip(sites, found, strict=True)
        }

    def reference_norm(self, name: Name) -> float:
        """The unit of doses at a site: median norm over non-special positions of the calibration text."""
        site = self.binding.site(name)
        if str(site) not in self._reference_norms:
            self._reference_norms |= calibration.measure_norms(self, site)
        return self._reference_norms[str(site)]

    @contextmanager
    def ready(self) -> Generator[None, None, None]:
        """Hold the model for one run.

        Raises:
            TrainingMode: dropout would make runs random.
            ModelBusy: another run is under way.
        """
        if self.hf.training:
            raise TrainingMode(
                "The model is in training mode.",
                got=type(self.hf).__name__,
                because="dropout would make every run different",
                instead="model.hf.eval()",
            )
        with held(self.hf):
            yield
