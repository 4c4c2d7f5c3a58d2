"""A run computes each block of activations once: calibration and its last figures cost no forward pass of their own."""

from dataclasses import dataclass, field

import pytest
import torch

from mechscope.dictionaries.architectures.topk import TopK
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.dictionaries.training.trainer import Trainer
from mechscope.engine.harvest.blocks import TensorBlocks
from mechscope.engine.harvest.stream import ActivationStream
from mechscope.vocabulary.sites import Site

SITE = Site("resid_post", 0)


@dataclass
class CountedBlocks:
    """Blocks in memory that count how often each was asked for."""

    source: TensorBlocks
    asked: list[int] = field(default_factory=list)

    @property
    def shapes(self):
        return self.source.shapes

    @property
    def sizes(self):
        return self.source.sizes

    def block(self, index):
        self.asked.append(index)
        return self.source.block(index)


def blocks_of(n_tokens: int, tokens_per_block: int) -> CountedBlocks:
    values = torch.randn(n_tokens, 8, generator=torch.Generator().manual_seed(0))
    return CountedBlocks(TensorBlocks({SITE: values}, tokens_per_block=tokens_per_block))


@pytest.mark.parametrize("tokens_per_block", [64, 24])  # batches within a block, and across several
@pytest.mark.parametrize("reads_ahead", [False, True])
def test_every_block_is_computed_once(tokens_per_block, reads_ahead):
    blocks = blocks_of(256, tokens_per_block)
    job = Job(reads=(SITE,), config=TopK(width=16, k=2))
    Trainer(blocks, [job], training=Training(batch=32), reads_ahead=reads_ahead).run()
    assert sorted(blocks.asked) == list(range(len(blocks.sizes)))


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_batches_are_the_same_with_and_without_a_look_at_the_first(reads_ahead):
    plain, looked = (
        ActivationStream(blocks=blocks_of(256, 24), batch=32, seed=3, reads_ahead=reads_ahead)
        for _ in range(2)
    )
    first = looked.first_batch[SITE].clone()
    for one, other in zip(plain.batches(0, 12), looked.batches(0, 12), strict=True):
        assert torch.equal(one[SITE], other[SITE])
    assert torch.equal(next(iter(plain.batches(0, 1)))[SITE], first)
    assert torch.equal(looked.first_batch[SITE], first)
