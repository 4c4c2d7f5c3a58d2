"""Generation: our own loop with a key/value cache, and other people's loops under our interventions.

Edits to k and v are applied to the whole key axis at every step; the cache itself holds unedited keys, so cached
and uncached generation agree under every intervention. Rows finish on their own; a padded row gives what it
gives alone, and samples from its own stream of random numbers.
"""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mechscope.models.frame import Frame
from mechscope.models.inputs import Inputs, TokenBatch, is_one_text
from mechscope.models.limits import refuse_own_predictions
from mechscope.models.preparing import prepare_writes, refuse_unless_it_fits
from mechscope.models.running import call_model
from mechscope.models.session import Plan, session
from mechscope.models.writing import writers_for
from mechscope.vocabulary.errors import InputError, InterventionMismatch, PromptTooLong, ShapeError
from mechscope.vocabulary.protocols import Write

if TYPE_CHECKING:
    import mechscope.models.model


_UNKNOWN = -1
"""Id of a token that was read before anybody followed; it matches no word."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue.

    Args:
        max_new_tokens: Most tokens to add to each row.
        temperature: 0 takes the most probable token.
        top_p: Sample from the smallest set of tokens with this much probability (0 to 1).
        seed: Each row draws from a stream made of the seed and its own prompt, so it gives the same alone and in a
            batch; equal prompts of one batch draw from different streams.
        use_cache: Without it every step runs the whole prompt: the slow oracle.
        stops_at_eos: End a row at the tokenizer's end-of-sequence token.
        returns: "text" (prompt and continuation) or "tokens" (lists of new ids).
    """

    max_new_tokens: int = 40
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    use_cache: bool = True
    stops_at_eos: bool = True
    returns: str = "text"


def generate(
    model: "mechscope.models.model.Model",
    inputs: Inputs,
    *,
    interventions: Sequence[Write],
    settings: Sampling,
    bos: bool | None = None,
) -> Any:
    """Continue prompts.

    Returns:
        Text for a text or a chat (a list of texts for several prompts), or the new token ids of each row.

    Raises:
        PromptTooLong: prompt and continuation exceed the context.
        NoNextToken: a masked language model.

    Cost: one pass over the prompt, then one token per row and step.
    """
    refuse_own_predictions(
        model.binding.anatomy,
        "Generation",
        instead="model.top(prompt) with a mask token in the prompt, or a causal model",
    )
    _refuse_settings(settings)
    batch = model.tokens(inputs, bos=bos)
    refuse_overflow(model, batch, settings.max_new_tokens)
    rows = _new_tokens(model, batch, interventions, settings)
    if settings.returns == "tokens" or model.tokenizer is None:
        return rows
    texts = [_text(model, batch.row(i) + row) for i, row in enumerate(rows)]
    return texts[0] if is_one_text(inputs) else texts


def _new_tokens(
    model: "mechscope.models.model.Model",
    batch: TokenBatch,
    interventions: Sequence[Write],
    settings: Sampling,
) -> list[list[int]]:
    frame = Frame.of(batch, n_room=settings.max_new_tokens)
    writes = prepare_writes(model, interventions, frame)
    plan = Plan(writers=writers_for(writes, frame))
    eos = _eos_ids(model) if settings.stops_at_eos else torch.tensor([], dtype=torch.long)
    draws = _streams(settings.seed, batch)
    done = torch.zeros(len(batch), dtype=torch.bool)
    # A cache without a configuration never crops, so columns stay positions under sliding windows.
    more: dict[str, Any] = {"past_key_values": DynamicCache()} if settings.use_cache else {}
    if model.binding.takes_logits_to_keep:
        more["logits_to_keep"] = 1
    with torch.no_grad(), model.ready(), session(model.binding, plan):
        for _ in range(settings.max_new_tokens):
            plan.shape = (len(batch), frame.ids.shape[1] - frame.first)
            logits = call_model(model.binding, frame, **more).logits[:, -1].cpu()
            new = _choose(logits, settings, draws)
            frame.first = frame.ids.shape[1] if settings.use_cache else 0
            frame.ids = torch.cat([frame.ids, new[:, None].to(frame.ids.device)], dim=1)
            done |= torch.isin(new, eos)
            if bool(done.all()):
                break
    grown = frame.ids[:, batch.ids.shape[1] :].tolist()
    return [_until(row, eos.tolist()) for row in grown]


def _choose(logits: Tensor, settings: Sampling, draws: list[torch.Generator]) -> Tensor:
    if settings.temperature == 0.0:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = (logits / settings.temperature).softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True)
    beyond = ordered.cumsum(-1) - ordered >= settings.top_p
    ordered = ordered.masked_fill(beyond, 0.0)
    picks = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(ordered, draws, strict=True)]
    return order.gather(-1, torch.stack(picks))[:, 0]


def _streams(seed: int, batch: TokenBatch) -> list[torch.Generator]:
    """One stream of random numbers a row, made of the seed, the prompt, and how often it came before."""
    seen: dict[tuple[int, ...], int] = {}
    streams: list[torch.Generator] = []
    for index in range(len(batch)):
        row = tuple(batch.row(index))
        seen[row] = seen.get(row, -1) + 1
        digest = hashlib.sha256(repr((seed, row, seen[row])).encode()).digest()
        streams.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    return streams


def _until(row: list[int], eos: list[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in eos:
            return row[: index + 1]
    return row


def _eos_ids(model: "mechscope.models.model.Model") -> Tensor:
    """The tokenizer's end of sequence, and those that the checkpoint's own generation settings name."""
    settings: Any = model.hf.generation_config
    named = None if settings is None else settings.eos_token_id
    ids = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    if model.tokenizer is not None and model.tokenizer.eos_token_id is not None:
        ids.append(model.tokenizer.eos_token_id)
    return torch.tensor(sorted(set(ids)), dtype=torch.long)


def _text(model: "mechscope.models.model.Model", ids: list[int]) -> str:
    return model.tokenizer.decode(ids, skip_special_tokens=True)


def _refuse_settings(settings: Sampling) -> None:
    problems = [
        text
        for text, is_wrong in (
            (f"max_new_tokens={settings.max_new_tokens}", settings.max_new_tokens < 0),
            (f"temperature={settings.temperature}", not 0 <= settings.temperature < float("inf")),
            (f"top_p={settings.top_p}", not 0 < settings.top_p <= 1),
            (f"returns={settings.returns!r}", settings.returns not in ("text", "tokens")),
        )
        if is_wrong
    ]
    if problems:
        raise InputError(
            "These settings of `generate` mean nothing.",
            got=", ".join(problems),
            instead='max_new_tokens >= 0, temperature >= 0, 0 < top_p <= 1, returns "text" or "tokens"',
        )


def refuse_overflow(model: "mechscope.models.model.Model", batch: TokenBatch, n_new: int) -> None:
    """Refuse prompts that leave no room for so many new tokens.

    Raises:
        PromptTooLong
    """
    longest = int(batch.n_real.max()) + n_new
    if longest > model.n_context:
        raise PromptTooLong(
            "Prompt and continuation together exceed the context.",
            got=f"{int(batch.n_real.max())} + {n_new} tokens",
            because=f"the context holds {model.n_context}",
            instead=f"max_new_tokens={max(0, model.n_context - int(batch.n_real.max()))}, or a shorter prompt",
        )


class Follower:
    """Interventions on a model that somebody else calls: follows the calls to know which token is which.

    Args:
        model: An open model.
        interventions: Applied to every call inside the block. Positions are counted from the first call whose
            cache is empty; a new prompt starts a new count.

    Caveat: rows must keep their order between steps, so beam search is not followed.
    """

    def __init__(self, model: "mechscope.models.model.Model", interventions: Sequence[Write]) -> None:
        self._model = model
        empty = torch.zeros((1, 1), dtype=torch.long)
        self._frame = Frame(empty, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
        # Prompts are not known yet, so selections are checked against them when they arrive.
        self._writes = prepare_writes(model, interventions, None)

    @contextmanager
    def following(self) -> Generator[nn.Module, None, None]:
        """The model, under the interventions, for the duration of a block."""
        hf = self._model.hf
        plan = Plan(writers=writers_for(self._writes, self._frame))
        handle = hf.register_forward_pre_hook(
            lambda _m, args, kwargs: self._note(args, kwargs, plan), with_kwargs=True
        )
        try:
            with session(self._model.binding, plan):
                yield hf
        finally:
            handle.remove()

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any], plan: Plan) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise InterventionMismatch(
                "The model was called without token ids inside `intervening`.",
                got=f"arguments {sorted(kwargs)}",
                because="positions are counted from token ids",
                instead="call the model with input_ids",
            )
        plan.shape = (ids.shape[0], ids.shape[1])
        cache = kwargs.get("past_key_values")
        n_past = 0 if cache is None else int(cache.get_seq_length())
        ids, known = ids.cpu(), self._frame.ids
        if n_past == 0 and not self._is_grown(ids, kwargs):
            self._begin(ids, kwargs.get("attention_mask"))
        elif n_past > known.shape[1]:
            # A prompt that was read before the block: its tokens are unknown, its padding is in the mask.
            before = torch.full((len(ids), n_past), _UNKNOWN)
            self._begin(torch.cat([before, ids], dim=1), kwargs.get("attention_mask"))
        else:
            self._frame.ids = ids if n_past == 0 else torch.cat([known[:, :n_past], ids], dim=1)
        self._frame.first = n_past

    def _is_grown(self, ids: Tensor, kwargs: dict[str, Any]) -> bool:
        """True for the next step of a loop without a cache: the same tokens and one more."""
        known = self._frame.ids
        is_longer = ids.shape == (known.shape[0], known.shape[1] + 1)
        return kwargs.get("use_cache") is False and is_longer and bool((ids[:, :-1] == known).all())

    def _begin(self, ids: Tensor, mask: Tensor | None) -> None:
        frame = self._frame
        frame.ids = ids
        if mask is None or mask.ndim != 2:
            frame.n_pad = torch.zeros(len(ids), dtype=torch.long)
        else:
            here = mask[:, -ids.shape[1] :].cpu().long()
            frame.n_pad = here.argmax(dim=1)
            _refuse_right_padding(here, frame.n_pad)
        frame.n_prompt = ids.shape[1] - frame.n_pad
        refuse_unless_it_fits(self._model, self._writes, replace(frame, n_room=self._model.n_context))


def _refuse_right_padding(mask: Tensor, n_pad: Tensor) -> None:
    columns = torch.arange(mask.shape[1])
    if not torch.equal(mask.bool(), columns[None, :] >= n_pad[:, None]):
        raise ShapeError(
            "Prompts must be padded on the left inside `intervening`.",
            got=f"real tokens per column {mask.sum(0).tolist()}",
            because="positions are counted from each row's first real token to its last column",
            instead='tokenizer.padding_side = "left"',
        )
