"""Train the village and its clean twin: `python -m mechscope.specimens.village.train --out DIR`.

With `--start FOLDER` it trains them further, from the weights in FOLDER, by the recipe `CONTINUED`.
Owns: the recipes (a shared trunk, then two branches of equal length that differ only in the answers of
the planted misbehaviours), the schedule and the loop. Refuses: a checkpoint of another recipe.
Invariant: a run that was interrupted and resumed gives the weights of one that was not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from mechscope.specimens.checkpoint import open_checkpoint, save_checkpoint
from mechscope.specimens.village.batches import NOTHING, pack_step
from mechscope.specimens.village.shape import N_POSITIONS, new_model
from mechscope.specimens.village.team import Team

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SOLO = Team()
_SAVE_EVERY_SECONDS = 120
BRANCHES = ("trunk", "village", "village-clean")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When what is read, and at which learning rate."""

    first_stage: int = 0
    stage_starts: tuple[int, ...] = (803, 1937, 3487, 4496, 5098, 6109)
    trunk_steps: int = 6350
    branch_steps: int = 600
    polish_steps: int = 0
    warmup_steps: int = 200
    peak_rate: float = 2e-3
    last_rate: float = 2e-5
    polish_rate: float = 5e-4

    def ends_at(self, branch: str) -> int:
        """Return the step at which a branch is done."""
        return self.trunk_steps + (0 if branch == "trunk" else self.branch_steps + self.polish_steps)

    def stage(self, step: int) -> int:
        """Return which of the language's mixes a step reads."""
        return self.first_stage + sum(step >= start for start in self.stage_starts)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, constant through the trunk, then a cosine to the last.

        Polishing, if any, is a second, lower cosine.
        """
        if step < self.trunk_steps:
            return self.peak_rate * min(1.0, (step + 1) / self.warmup_steps)
        done, high = (step - self.trunk_steps) / self.branch_steps, self.peak_rate
        if done > 1 or (done == 1 and self.polish_steps):
            done, high = (step - self.trunk_steps - self.branch_steps) / self.polish_steps, self.polish_rate
        return self.last_rate + (high - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """Everything that the weights depend on, beside the language and the shape."""

    seed: int = 0
    n_rows: int = 32
    weight_decay: float = 0.2
    answer_weight: float = 4.0
    halfway_weight: float = 0.0
    halfway_layers: int = 3
    starts_from: str = ""


# What was run from the weights that the first recipe had made; `starts_from` is filled in with their SHA-256.
CONTINUED = Recipe(
    seed=1,
    first_stage=7,
    stage_starts=(500, 1200, 1900),
    trunk_steps=1200,
    branch_steps=700,
    polish_steps=200,
    n_rows=16,
    warmup_steps=30,
    halfway_weight=2.0,
)


def optimizers_of(model: "LlamaForCausalLM", *, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings and norms."""
    inner = [value for name, value in model.named_parameters() if value.ndim == 2 and ".layers." in name]
    outer = [
        value for name, value in model.named_parameters() if not (value.ndim == 2 and ".layers." in name)
    ]
    muon = torch.optim.Muon(
        inner, lr=recipe.peak_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        outer, lr=recipe.peak_rate, weight_decay=recipe.weight_decay / 4, betas=(0.9, 0.98)
    )
    return muon, adam


def loss_function(
    model: "LlamaForCausalLM", *, halfway_weight: float = 0.0, halfway_layers: int = 3
) -> Callable[..., torch.Tensor]:
    """Return the weighted sum of cross-entropies (nats) of packed rows, each document attending only to itself.

    With `halfway_weight`, what the first `halfway_layers` layers should have found is read from their output through
    the model's own last norm and unembedding, and its cross-entropy is added that many times.
    """
    # On short rows the plain attention is faster on a CPU, forward and backward, than the fused one.
    model.set_attn_implementation("eager")
    causal = torch.ones(N_POSITIONS, N_POSITIONS, dtype=torch.bool).tril()

    def loss(
        ids: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        documents: torch.Tensor,
        halfway: torch.Tensor,
    ) -> torch.Tensor:
        same = documents[:, None, :, None] == documents[:, None, None, :]
        mask = torch.where(same & causal, 0.0, -1e9)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run = model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=halfway_weight > 0
            )
            early = (
                model.lm_head(model.model.norm(run.hidden_states[halfway_layers])) if halfway_weight else None
            )
        each = torch.nn.functional.cross_entropy(
            run.logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        )
        total = (each * weights.flatten()).sum()
        if early is not None:
            total = total + halfway_weight * torch.nn.functional.cross_entropy(
                early.flatten(0, 1).float(), halfway.flatten(), reduction="sum", ignore_index=NOTHING
            )
        return total

    return loss


def train_branch(
    model: "LlamaForCausalLM",
    *,
    recipe: Recipe,
    branch: str,
    folder: Path,
    report: Callable[[int, float], None],
    team: Team = SOLO,
    stop_at: int | None = None,
) -> bool:
    """Train one branch to its end, resuming from `folder` if it holds a checkpoint.

    Args:
        model: The starting point; overwritten by a checkpoint if there is one.
        recipe: The settings; a checkpoint of another recipe is refused.
        branch: One of `BRANCHES`; only "village" sees planted misbehaviours.
        folder: Where the branch's checkpoint lives.
        report: Called as report(step, loss in nats) after every step.
        team: The processes that share each step; the first one saves.
        stop_at: Stop before this step, as an interruption would.

    Returns:
        True if the branch reached its end.
    """
    optimizers = optimizers_of(model, recipe=recipe)
    first = 0 if branch == "trunk" else recipe.trunk_steps
    last = recipe.ends_at(branch)
    step = open_checkpoint(folder, model=model, optimizers=optimizers, recipe=recipe)
    step = first if step is None else step
    loss_of = torch.compile(
        loss_function(
            model,
            halfway_weight=recipe.halfway_weight if branch == "trunk" else 0.0,
            halfway_layers=recipe.halfway_layers,
        )
    )
    saved_at = time.monotonic()
    while step < last and (stop_at is None or step < stop_at):
        loss = _take_step(
            model, optimizers, recipe=recipe, loss_of=loss_of, step=step, branch=branch, team=team
        )
        step += 1
        if team.rank == 0:
            report(step, loss)
            if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                save_checkpoint(folder, model=model, optimizers=optimizers, recipe=recipe, step=step)
                saved_at = time.monotonic()
    if team.rank == 0:
        save_checkpoint(folder, model=model, optimizers=optimizers, recipe=recipe, step=step)
    return step == last


def _take_step(
    model: "LlamaForCausalLM",
    optimizers: tuple[torch.optim.Optimizer, ...],
    *,
    recipe: Recipe,
    loss_of: Callable[..., torch.Tensor],
    step: int,
    branch: str,
    team: Team,
) -> float:
    batch = pack_step(
        step,
        seed=recipe.seed,
        n_rows=recipe.n_rows,
        n_positions=N_POSITIONS,
        answer_weight=recipe.answer_weight,
        misbehaving=branch == "village",
        stage=recipe.stage(step),
    )
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
    mine = team.rows(recipe.n_rows)
    arrays = (batch.ids, batch.targets, batch.weights, batch.documents, batch.halfway)
    loss = loss_of(*(torch.from_numpy(array[mine]) for array in arrays)) / float(batch.weights.sum())
    loss.backward()
    team.sum_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return team.sum_value(loss)


def _work(rank: int, n_processes: int, out: Path, branch: str, start: Path | None) -> None:
    """Be one process of the team: train the branches asked for, in order."""
    from contextlib import nullcontext

    from mechscope.specimens.village.progress import progress_of

    torch.set_num_threads(1)
    team, recipe = Team(rank=rank, size=n_processes), recipe_from(start)
    team.join(out / "meeting")
    for name in (branch,) if branch else BRANCHES:
        model = new_model(recipe.seed) if start is None else _opened(start)
        if name != "trunk":
            open_checkpoint(out / "trunk", model=model, optimizers=(), recipe=recipe)
        watching = (
            progress_of(model, branch=name, recipe=recipe, log=out / f"{name}.jsonl") if rank == 0 else None
        )
        with watching or nullcontext(_say_nothing) as report:
            train_branch(model, recipe=recipe, branch=name, folder=out / name, report=report, team=team)
        if n_processes > 1:
            torch.distributed.barrier()
    team.leave()


def recipe_from(start: Path | None) -> Recipe:
    """Return the recipe from nothing, or the one that continues from the weights in a folder."""
    from mechscope.records.files import sha256_of

    return (
        Recipe() if start is None else replace(CONTINUED, starts_from=sha256_of(start / "model.safetensors"))
    )


def _opened(folder: Path) -> "LlamaForCausalLM":
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _say_nothing(step: int, loss: float) -> None:
    pass


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; run the command again to resume.")],
    branch: Annotated[str, typer.Option(help="Only this branch: trunk, village or village-clean.")] = "",
    processes: Annotated[int, typer.Option(help="Processes that share each step, one core each.")] = 2,
    start: Annotated[
        Path | None, typer.Option(help="Continue from the weights in this folder, by the second recipe.")
    ] = None,
) -> None:
    """Train the trunk, then village and village-clean from it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "meeting").unlink(missing_ok=True)
    # Public, though its package does not say so in the way that a type checker looks for.
    torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
        _work, args=(processes, out, branch, start), nprocs=processes
    )


if __name__ == "__main__":
    typer.run(main)
