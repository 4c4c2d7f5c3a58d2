"""Train the one-layer model on the table, full batch; a checkpoint is whole or absent, and a run goes on from it.

Invariant: interrupted and resumed equals uninterrupted, bit for bit on one device.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechscope.models.native import NativeConfig, NativeForCausalLM, open_transformer_lens
from mechscope.records.seeds import seed_for
from mechscope.specimens.checkpoint import open_checkpoint, save_checkpoint
from mechscope.specimens.grokking.settings import GrokkingSettings
from mechscope.specimens.grokking.table import AdditionTable, make_table
from mechscope.vocabulary.errors import UnsupportedModel

WARMUP_STEPS = 10

OnCheckpoint = Callable[[int, NativeForCausalLM], None]


def new_model(settings: GrokkingSettings) -> NativeForCausalLM:
    """The untrained model: one layer, no norms, ReLU, no biases, in float32."""
    p = settings.modulus
    config = NativeConfig(
        n_layers=1,
        d_model=settings.d_model,
        n_heads=settings.n_heads,
        d_head=settings.d_model // settings.n_heads,
        d_mlp=4 * settings.d_model,
        d_vocab=p + 1,
        d_vocab_out=p,
        n_ctx=3,
        norm="none",
        positions="learned",
        activation="relu",
        bias=False,
        initializer_range=0.8 / settings.d_model**0.5,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(settings.seed, "grokking", "weights"))
        model = NativeForCausalLM(config)
    model.set_attn_implementation("eager")
    return model.eval()


def open_published(
    source: str | Path | Mapping[str, Tensor], config: Mapping[str, object]
) -> NativeForCausalLM:
    """Open TransformerLens weights of a published modular addition model; refuse a model of something else.

    Args:
        source: A state dict or its file; see `open_transformer_lens`.
        config: The `HookedTransformerConfig` as a dictionary.

    Raises:
        UnsupportedModel: the model is not of three positions, p + 1 tokens and p answers.
    """
    model = open_transformer_lens(source, config)
    shape = model.config
    if shape.d_vocab != shape.d_vocab_out + 1 or shape.n_ctx < 3:
        raise UnsupportedModel(
            "This is no model of addition modulo p.",
            got=f"{shape.d_vocab} tokens, {shape.d_vocab_out} answers, {shape.n_ctx} positions",
            because="it reads a, b and one more token, and answers one of p numbers",
            instead="p + 1 tokens, p answers, 3 positions",
        )
    return model


def answer_logits(model: NativeForCausalLM, table: AdditionTable) -> Float[Tensor, "pair answer"]:
    """Logits at the last position for every pair of the table, in the model's dtype."""
    return model(table.tokens, logits_to_keep=1).logits[:, -1]


def train_grokking(
    settings: GrokkingSettings,
    *,
    out: str | Path,
    checkpoint_every: int = 250,
    on_checkpoint: OnCheckpoint | None = None,
    device: str = "cpu",
    stop_after: int | None = None,
) -> NativeForCausalLM:
    """Train, or go on from the checkpoint in `out`; return the model.

    Args:
        settings: The run; a checkpoint of another one is refused.
        out: Folder of the checkpoint.
        checkpoint_every: Steps between checkpoints; also one at step 0 and one at the end.
        on_checkpoint: Called with step and model just before each checkpoint is written.
        device: Of the training.
        stop_after: Stop at this step, as an interruption would.

    Cost: a step at p = 113 is 3,830 rows of three tokens through the model and back.
    """
    table = make_table(settings.modulus, train_share=settings.train_share, seed=settings.seed).to(device)
    tokens, answers = table.tokens[table.is_train], table.answers[table.is_train]
    model = new_model(settings)
    torch.nn.Module.to(model, device)  # the library's own `to` is wrapped, and its types with it
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )

    def keep(step: int) -> None:
        if on_checkpoint is not None:
            with torch.no_grad():
                on_checkpoint(step, model)
        save_checkpoint(Path(out), model=model, optimizers=(optimizer,), recipe=settings, step=step)

    done = open_checkpoint(Path(out), model=model, optimizers=(optimizer,), recipe=settings)
    if done is None:
        done = 0
        keep(0)
    last = settings.n_steps if stop_after is None else min(stop_after, settings.n_steps)
    for step in range(done, last):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
        logits = model(tokens, logits_to_keep=1).logits[:, -1]
        # in float32 the loss stops falling at 1e-7, and the slow part of grokking with it
        loss = functional.cross_entropy(logits.double(), answers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.n_steps:
            keep(step + 1)
    return model
