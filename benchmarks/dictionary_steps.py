"""Dictionary steps: one training step against a dense one in float32 with fused Adam, and training end to end.

The dense TopK step is what people write: product, top-k, scatter, product, autograd, and the same AuxK on the same
share of the batch. The dense JumpReLU and Matryoshka steps are the trainer's own with full products everywhere.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs, time_pairs
from benchmarks.shapes import opened, random_ids
from mechscope.dictionaries.architectures.base import Architecture
from mechscope.dictionaries.architectures.jumprelu import JumpReLU
from mechscope.dictionaries.architectures.matryoshka import Matryoshka
from mechscope.dictionaries.architectures.topk import TopK
from mechscope.dictionaries.kernels.active import wants_bfloat16
from mechscope.dictionaries.training.learner import Learner, Moment
from mechscope.dictionaries.training.spec import Job, Revival, Training
from mechscope.dictionaries.training.trainer import Trainer
from mechscope.engine.harvest.blocks import ModelBlocks, TensorBlocks
from mechscope.engine.harvest.corpus import corpus_of
from mechscope.engine.harvest.store import save_activations
from mechscope.vocabulary.sites import Site

D_MODEL, WIDTH, BATCH, K = 768, 12_288, 4096, 32
AUX_K, AUX_SHARE, DEAD_SHARE = 2 * K, 0.25, 0.1
L0 = 48.0
SITE = Site("resid_post", 5)
N_ROWS, N_CONTEXT = 64, 128


def sparse_batch(n: int = BATCH, d: int = D_MODEL, seed: int = 0) -> Tensor:
    """Sums of 16 of 4,096 random directions, so that a dictionary has something to find."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4096, d, generator=torch.Generator().manual_seed(99)) / d**0.5
    chosen = torch.randint(0, len(directions), (n, 16), generator=generator)
    sizes = torch.rand(n, 16, generator=generator) + 0.5
    return torch.nn.functional.embedding_bag(chosen, directions, mode="sum", per_sample_weights=sizes)


def learner_for(
    config: Architecture, *, n_dead: int, is_sparse: bool = True, precision: str = "auto"
) -> Learner:
    """A learner that has seen a batch, with so many latents taken for dead."""
    revival = Revival(aux_k=AUX_K if n_dead else 0, aux_share=AUX_SHARE)
    training = Training(revival=revival, is_sparse=is_sparse, precision=precision, batch=BATCH)  # pyright: ignore
    learner = Learner(Job(reads=(SITE,), config=config), training, shapes={SITE: (D_MODEL,)})
    learner.calibrate({SITE: sparse_batch()})
    learner.dead = torch.arange(0, WIDTH, WIDTH // n_dead)[:n_dead] if n_dead else learner.dead
    return learner


def step_of(learner: Learner) -> Callable[[], object]:
    """One step of the trainer on a batch that lies ready."""
    batch = {SITE: sparse_batch()}
    return lambda: learner.step(batch, Moment(50, 100))


class DenseStep:
    """A TopK step with full products, in float32, with fused Adam.

    Args:
        n_dead: Latents that AuxK is about; 0 turns it off.
    """

    def __init__(self, n_dead: int) -> None:
        generator = torch.Generator().manual_seed(0)
        decoder = torch.nn.functional.normalize(torch.randn(WIDTH, D_MODEL, generator=generator), dim=1)
        self.encoder = decoder.clone().requires_grad_()
        self.decoder = decoder.requires_grad_()
        self.b_enc = torch.zeros(WIDTH, requires_grad=True)
        self.b_dec = torch.zeros(D_MODEL, requires_grad=True)
        self.dead = torch.arange(0, WIDTH, WIDTH // n_dead)[:n_dead] if n_dead else None
        params = [self.encoder, self.decoder, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(params, lr=1e-4, fused=True)
        self.batch = sparse_batch() * D_MODEL**0.5 / sparse_batch().norm(dim=1).mean()

    def __call__(self, batch: Tensor | None = None) -> Tensor:
        x = self.batch if batch is None else batch
        self.optimizer.zero_grad(set_to_none=True)
        pre = (x - self.b_dec) @ self.encoder.T + self.b_enc
        values, chosen = pre.topk(K, dim=1, sorted=False)
        codes = torch.zeros_like(pre).scatter(1, chosen, values.relu())
        written = codes @ self.decoder + self.b_dec
        loss = (written - x).pow(2).mean()
        if self.dead is not None:
            loss = loss + self._auxiliary(pre, (x - written).detach())
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _auxiliary(self, pre: Tensor, left: Tensor) -> Tensor:
        assert self.dead is not None
        n = int(len(left) * AUX_SHARE)
        values, chosen = pre[:n, self.dead].topk(AUX_K, dim=1, sorted=False)
        codes = torch.zeros(n, len(self.dead)).scatter(1, chosen, values.relu())
        wanted = left[:n]
        return (codes @ self.decoder[self.dead] - wanted).pow(2).mean() / wanted.var() / 32


def topk_line(*, n_dead: int, limit_speedup: float, n_pairs: int) -> Line:
    """A TopK step against a dense one."""
    learner = learner_for(TopK(width=WIDTH, k=K), n_dead=n_dead)
    times = time_pairs(step_of(learner), DenseStep(n_dead), n_pairs=n_pairs, n_warmups=1)
    return _against_dense(f"topk step, {n_dead} of {WIDTH} latents dead", times, limit_speedup, learner)


def own_dense_line(config: Architecture, *, limit_speedup: float, n_pairs: int) -> Line:
    """A step of an architecture against its own with full products."""
    learner = learner_for(config, n_dead=0)
    dense = learner_for(config, n_dead=0, is_sparse=False, precision="full")
    times = time_pairs(step_of(learner), step_of(dense), n_pairs=n_pairs, n_warmups=1)
    return _against_dense(f"{config.name} step", times, limit_speedup, learner)


N_DEAD = int(DEAD_SHARE * WIDTH)
STEPS: dict[str, Callable[[int], Line]] = {
    "topk": lambda n_pairs: topk_line(n_dead=0, limit_speedup=5.0, n_pairs=n_pairs),
    "topk-auxk": lambda n_pairs: topk_line(n_dead=N_DEAD, limit_speedup=4.0, n_pairs=n_pairs),
    "jumprelu": lambda n_pairs: own_dense_line(
        JumpReLU(width=WIDTH, l0=L0, start=1.0), limit_speedup=2.5, n_pairs=n_pairs
    ),
    "matryoshka": lambda n_pairs: own_dense_line(
        Matryoshka(width=WIDTH, k=L0), limit_speedup=2.5, n_pairs=n_pairs
    ),
}
"""Every step that the project has a limit for."""


def harvest_line(n_pairs: int) -> Line:
    """Harvest to disk against the forward passes stopped at the site."""
    blocks = _blocks()

    def to_disk() -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_activations(blocks, Path(folder) / "store")

    times = time_pairs(to_disk, lambda: _forwards(blocks), n_pairs=n_pairs, n_warmups=1)
    tokens = sum(blocks.sizes)
    rate = tokens / float(np.median(times.ours))
    return line_of("harvest to disk", times, limit_ratio=1 / 0.9, tokens_per_second=rate, site=str(SITE))


def end_to_end_line(n_pairs: int) -> Line:
    """Training on a model's activations against its two parts one after the other, on one device."""
    blocks = _blocks()
    job = Job(reads=(SITE,), config=TopK(width=WIDTH, k=K))
    training = Training(batch=BATCH)
    values = TensorBlocks({SITE: torch.cat([blocks.block(i)[SITE] for i in range(len(blocks.sizes))])})

    def parts() -> None:
        _forwards(blocks)
        Trainer(values, [job], training=training).run()

    times = time_pairs(
        lambda: Trainer(blocks, [job], training=training).run(), parts, n_pairs=n_pairs, n_warmups=1
    )
    return line_of("training end to end, against the sum of its parts", times, limit_ratio=1.1)


def final_fvu_line(n_pairs: int, *, n_steps: int = 150) -> Line:
    """Final FVU of the fast TopK trainer over that of full float32 products, one pair a seed."""
    found = np.array([[_final_fvu(seed, n_steps, fast) for fast in (True, False)] for seed in range(3)])
    pairs = Pairs(found[:, 0], found[:, 1], found[:, 1])
    spread = float(np.abs(found[:, 0] / found[:, 1] - 1).max())
    return line_of("final FVU of topk", pairs, limit_ratio=1.01, largest_difference=spread, n_steps=n_steps)


def _final_fvu(seed: int, n_steps: int, fast: bool) -> float:
    training = Training(
        batch=1024, n_tokens=1024 * n_steps, seed=seed, is_sparse=fast, precision="auto" if fast else "full"
    )
    blocks = TensorBlocks({SITE: sparse_batch(32_768, 256, seed)})
    run = Trainer(blocks, [Job(reads=(SITE,), config=TopK(width=4096, k=16))], training=training)
    fvu = run.run()[0].settings.calibration.fvu
    assert fvu is not None
    return fvu


def _blocks() -> ModelBlocks:
    ids = random_ids("gpt2-small", N_ROWS, N_CONTEXT)
    model = opened("gpt2-small")
    return ModelBlocks(
        model=model, corpus=corpus_of(model, ids), sites=(SITE,), rows_per_block=32, rows_at_once=16
    )


def _forwards(blocks: ModelBlocks) -> None:
    for index in range(len(blocks.sizes)):
        for rows in blocks.row_batches(index):
            blocks.model.run(blocks.corpus.batch(rows)[0], stop_after=SITE)


def _against_dense(name: str, times: Pairs, limit_speedup: float, learner: Learner) -> Line:
    return line_of(
        name,
        times,
        limit_ratio=1 / limit_speedup,
        speedup=float(np.median(1 / times.ratios)),
        limit_speedup=limit_speedup,
        bfloat16=wants_bfloat16(learner.training.precision, learner.device, learner.dtype),
        threads=torch.get_num_threads(),
    )
