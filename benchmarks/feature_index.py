"""Feature index: one pass over a text against its forward passes alone; a page; memory against the text's length.

4,096 latents (TopK, k = 32) at the last layer of the 4-layer 256-wide model, random weights and tokens. The baseline
runs the same batches up to the same site and keeps nothing.
"""

import shutil
import tempfile
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.lines import Line, line_of, peak_mb
from benchmarks.pairing import Pairs, time_pairs
from benchmarks.shapes import opened, random_ids
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings
from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.corpus import TokenCorpus, corpus_of
from mechscope.features.building import build
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import IndexSettings
from mechscope.vocabulary.sites import Site

SHAPE, SITE = "4-layer-256-wide", Site("resid_post", 3)
N_LATENTS, K, N_CONTEXT = 4096, 32, 128
N_TOKENS = 65_536
FULL_PART = IndexSettings().entries_per_part // K
"""Tokens whose activations are written as one part: a shorter text needs less memory than an index may hold."""

PAGE_SECONDS = 0.1
N_PAGES = 30
MOST_GROWTH = 1.2
"""Peak memory over four times the text."""


@cache
def dictionary() -> Dictionary:
    """Random directions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(N_LATENTS, 256, generator=generator), dim=1)
    port = Port(site=SITE, shape=(256,))
    settings = Settings(reads=(port,), writes=(port,), n_latents=N_LATENTS, gate=Gate(rule="topk", k=K))
    tensors = {
        "W_enc": rows.T.contiguous(),
        "W_dec": rows,
        "b_enc": torch.zeros(N_LATENTS),
        "b_dec": torch.zeros(256),
    }
    return Dictionary(settings, tensors)


@cache
def text(n_tokens: int) -> TokenCorpus:
    """Random tokens in rows of 128."""
    return corpus_of(opened(SHAPE), random_ids(SHAPE, n_tokens // N_CONTEXT, N_CONTEXT))


def index_lines(n_pairs: int) -> list[Line]:
    """Building, looking, and memory."""
    return [build_line(n_pairs), page_line(), memory_line()]


def build_line(n_pairs: int) -> Line:
    """The index of all latents against the forward passes alone."""
    blocks = ModelBlocks(
        model=opened(SHAPE), corpus=text(N_TOKENS), sites=(SITE,), rows_per_block=64, rows_at_once=32
    )

    def forwards() -> None:
        for index in range(len(blocks.sizes)):
            for rows in blocks.row_batches(index):
                blocks.model.run(blocks.corpus.batch(rows)[0], stop_after=SITE)

    def ours() -> None:
        shutil.rmtree(_indexed(N_TOKENS))

    times = time_pairs(ours, forwards, n_pairs=n_pairs, n_warmups=1)
    return line_of("feature index", times, limit_ratio=1.5, latents=N_LATENTS, tokens=N_TOKENS)


def page_line() -> Line:
    """A page, examples and neighbours included, against a tenth of a second."""
    folder = _indexed(N_TOKENS)
    index = FeatureIndex(folder)
    _ = index[0]
    seconds: list[float] = []
    for latent in np.linspace(1, N_LATENTS - 1, N_PAGES).astype(int).tolist():
        start = perf_counter()
        index[latent].to_html()
        seconds.append(perf_counter() - start)
    shutil.rmtree(folder)
    limit = np.full(N_PAGES, PAGE_SECONDS)
    return line_of("feature page", Pairs(np.array(seconds), limit, limit), limit_ratio=1.0, pages=N_PAGES)


def memory_line() -> Line:
    """Peak memory after four times a text over the peak after the text, which fills what is held at once."""
    shutil.rmtree(_indexed(FULL_PART))
    before = peak_mb()
    shutil.rmtree(_indexed(4 * FULL_PART))
    found = Pairs(np.array([peak_mb()]), np.array([before]), np.array([before]))
    return line_of("feature index memory", found, limit_ratio=MOST_GROWTH, unit="MiB", tokens=4 * FULL_PART)


def _indexed(n_tokens: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mechscope-index-"))
    build(opened(SHAPE), dictionary(), text(n_tokens), folder=folder)
    return folder
