"""Train the village and its clean twin: `python -m mechscope.specimens.village.train --out DIR`.

Owns: the recipe (a shared trunk, then two continuations of equal length that differ only in the answers of
the planted misbehaviours), the schedule and the loop. Refuses: a checkpoint of another recipe.
Invariant: a run that was interrupted and resumed gives the weights of one that was not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from mechscope.specimens.village.batches import pack_step
from mechscope.specimens.village.checkpoint import open_checkpoint, save_checkpoint
from mechscope.specimens.village.shape import N_POSITIONS, new_model
from mechscope.specimens.village.team import Team

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SOLO = Team()
_SAVE_EVERY_SECONDS = 120
BRANCHES = ("trunk", "village", "village-clean")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the weights depend on, beside the language and the shape."""

    seed: int = 0
    stage_starts: tuple[int, ...] = (803, 1937, 3487, 4496, 5098, 6109)
    trunk_steps: int = 6350
    branch_steps: int = 600
    n_rows: int = 32
    warmup_steps: int = 200
    peak_rate: float = 2e-3
    last_rate: float = 2e-5
    weight_decay: float = 0.2
    answer_weight: float = 4.0

    def stage(self, step: int) -> int:
        """Return which of the language's mixes a step reads."""
        return sum(step >= start for start in self.stage_starts)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, constant through the trunk, then a cosine to the last."""
        if step < self.trunk_steps:
            return self.peak_rate * min(1.0, (step + 1) / self.warmup_steps)
        done = (step - self.trunk_steps) / self.branch_steps
        return self.last_rate + (self.peak_rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


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


def loss_function(model: "LlamaForCausalLM") -> Callable[..., torch.Tensor]:
    """Return the weighted sum of cross-entropies (nats) of packed rows, each document attending only to itself."""
    # On short rows the plain attention is faster on a CPU, forward and backward, than the fused one.
    model.set_attn_implementation("eager")
    causal = torch.ones(N_POSITIONS, N_POSITIONS, dtype=torch.bool).tril()

    def loss(
        ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, documents: torch.Tensor
    ) -> torch.Tensor:
        same = documents[:, None, :, None] == documents[:, None, None, :]
        mask = torch.where(same & causal, 0.0, -1e9)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        )
        return (each * weights.flatten()).sum()

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
    last = recipe.trunk_steps + (0 if branch == "trunk" else recipe.branch_steps)
    step = open_checkpoint(folder, model=model, optimizers=optimizers, recipe=recipe)
    step = first if step is None else step
    loss_of = torch.compile(loss_function(model))
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


def _take_step(model, optimizers, *, recipe: Recipe, loss_of, step: int, branch: str, team: Team) -> float:
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
    arrays = (batch.ids, batch.targets, batch.weights, batch.documents)
    loss = loss_of(*(torch.from_numpy(array[mine]) for array in arrays)) / float(batch.weights.sum())
    loss.backward()
    team.sum_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return team.sum_value(loss)


def _work(rank: int, n_processes: int, out: Path, branch: str) -> None:
    """Be one process of the team: train the branches asked for, in order."""
    from contextlib import nullcontext

    from mechscope.specimens.village.progress import progress_of

    torch.set_num_threads(1)
    team, recipe = Team(rank=rank, size=n_processes), Recipe()
    team.join(out / "meeting")
    for name in (branch,) if branch else BRANCHES:
        model = new_model(recipe.seed)
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


def _say_nothing(step: int, loss: float) -> None:
    pass


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; run the command again to resume.")],
    branch: Annotated[str, typer.Option(help="Only this branch: trunk, village or village-clean.")] = "",
    processes: Annotated[int, typer.Option(help="Processes that share each step, one core each.")] = 2,
) -> None:
    """Train the trunk, then village and village-clean from it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_work, args=(processes, out, branch), nprocs=processes)


if __name__ == "__main__":
    typer.run(main)
