"""A report with every kind of block, over invented numbers: for the tests, and to be looked at.

`python tests/sample_report.py OUT.html` writes it.
"""

import sys
from pathlib import Path

import numpy as np

from mechscope.figures import (
    AttentionView,
    Bars,
    Bullets,
    Callout,
    Code,
    ForestPlot,
    ForestRow,
    Heatmap,
    LabelledArray,
    Lines,
    Prose,
    Report,
    Section,
    Table,
    TokenStrip,
    Verdict,
)

TOKENS = ["<bos>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John"]
TOKENS += [" gave", " a", " drink", " to", "\n"]
HOSTILE = [
    "<script>alert(1)</script>",
    '"onload="alert(2)',
    "\u202eevil",
    "\u200b",
    "\n",
    " عربي",
    "👩‍👩‍👧",
    "  ",
]
CONVENTIONS = {"direction": "denoising", "ablation": "mean over train", "norm": "recomputed"}


def patch_grid(tokens: list[str] = TOKENS) -> LabelledArray:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.03, (5, 16))
    values[:3, 4], values[1:3, 10], values[3:, 14] = [0.98, 0.91, 0.42], [0.51, 0.66], [0.62, 0.97]
    values[3, 2] = -0.31
    return LabelledArray(
        values,
        ("layer", "pos"),
        texts={"pos": tokens},
        unit="recovered fraction",
        title="Patching the residual stream",
        conventions=CONVENTIONS,
    )


def head_grid() -> LabelledArray:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.12, (5, 6))
    values[3, 1], values[2, 4], values[4, 0] = 2.31, 1.74, -0.92
    values[0, 5] = np.nan
    return LabelledArray(
        values, ("layer", "head"), unit="nats", title="Effect of each head", conventions=CONVENTIONS
    )


def attention(tokens: list[str] = TOKENS) -> LabelledArray:
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 1.2, (4, 16, 16))
    for head, offset in enumerate((1, 0, 4, 10)):
        for query in range(16):
            scores[head, query, max(0, query - offset)] += 4.5
    scores[:, ~np.tril(np.ones((16, 16), bool))] = -np.inf
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    return LabelledArray(
        weights,
        ("head", "query", "key"),
        coords={"head": ["2.4", "3.1", "4.0", "1.3"]},
        texts={"query": tokens, "key": tokens},
        unit="weight",
        title="Attention of the heads found",
    )


def predictions() -> list[ForestRow]:
    rng = np.random.default_rng(3)
    normal = rng.normal(0.1, 0.22, 240).tolist()
    shifted = rng.normal(0.05, 0.1, 240).tolist()
    return [
        ForestRow(
            label="Ablating the heads lowers the logit difference by at least 2 nats",
            effect=2.84, low=2.51, high=3.17, unit="nats", at_least=2.0, controls=normal, p=1 / 241,
            outcome="holds", note="240 sets of other heads, same layers",
        ),
        ForestRow(
            label="Restoring them alone recovers at least 0.8",
            effect=0.79, low=0.71, high=0.86, unit="recovered fraction", at_least=0.8, controls=shifted,
            p=1 / 241, outcome="undecided", note="interval too wide",
        ),
        ForestRow(
            label="Greater-than is spared within 0.1",
            effect=0.21, low=0.16, high=0.26, unit="recovered fraction", within=0.1,
            controls=shifted[:30], outcome="fails", note="30 random subspaces",
        ),
    ]  # fmt: skip


def logit_lens() -> LabelledArray:
    steps = np.arange(6)
    values = np.stack(
        [
            4 / (1 + np.exp(-(steps - 3.2) * 2)),
            3 / (1 + np.exp(-(steps - 2) * 1.5)) - steps * 0.3,
            steps * 0.1 - 1,
        ]
    )
    return LabelledArray(
        values,
        ("answer", "layer"),
        coords={"answer": [" Mary", " John", " the"], "layer": ["embed", "0", "1", "2", "3", "4"]},
        unit="logit",
        title="Logit lens at the last token",
        low=values - 0.3,
        high=values + 0.3,
    )


def head_bars() -> LabelledArray:
    values = np.array([2.31, 1.74, -0.92, 0.4, 0.02])
    return LabelledArray(
        values,
        ("head",),
        coords={"head": ["3.1", "2.4", "4.0", "MLP 2", "0.3"]},
        unit="nats",
        title="Direct effect on the logit difference",
        low=values - 0.25,
        high=values + 0.21,
    )


def strips(tokens: list[str] = TOKENS) -> list[LabelledArray]:
    rng = np.random.default_rng(4)
    return [
        LabelledArray(rng.normal(0, 1, 16), ("pos",), texts={"pos": tokens}, unit="nats", title=title)
        for title in ("clean", "corrupt")
    ]


def sample(tokens: list[str] = TOKENS) -> Report:
    report = Report(
        "Indirect object identification in village",
        "5 layers, 6 heads, 2.9 M parameters · 600 prompt pairs, 200 held out · seed 0",
        Verdict(
            "inconclusive",
            "Heads 2.4, 3.1 and 4.0 carry the name of the indirect object to the last token.",
            "Two of three predictions are settled; the recovery's interval reaches below its bound of 0.8.",
            {
                "logit difference": "3.41 nats",
                "recovered": "0.79 [0.71, 0.86]",
                "heads": "3 of 30",
                "controls": "240",
            },
        ),
        {
            "model": "village (llama), revision 1, float32",
            "weights": "sha256 " + "0123456789abcdef" * 4,
            "data": "sha256 " + "fedcba9876543210" * 4,
            "software": "mechscope 0.1.0 · torch 2.13.0 · transformers 5.23.0 · Python 3.11",
            "seed": "0",
            "created": "2026-07-01T09:30:00+00:00",
        },
    )
    report.add(
        Section(
            "The behaviour",
            [
                Prose(
                    "In clean prompts the model must name the person who is **not** the giver. The metric is "
                    "the difference of two logits at the last token, `logit(Mary) - logit(John)`."
                ),
                Table(
                    ["split", "prompts", "units", "accuracy", "logit difference", "95% interval"],
                    [
                        ["train", 200, 40, 0.985, 3.44, "[3.31, 3.58]"],
                        ["held out", 200, 41, 0.98, 3.41, "[3.26, 3.55]"],
                    ],
                    caption="How well the model does it",
                ),
                TokenStrip(strips(tokens), "Loss of each token", "One pair of prompts."),
            ],
        )
    )  # fmt: skip
    report.add(
        Section(
            "Where it happens",
            [
                Heatmap(
                    patch_grid(tokens), "Each cell: the corrupt run with one clean vector put in its place."
                ),
                Heatmap(
                    head_grid(),
                    "Outlined: the heads in the claim.",
                    marks=[{"layer": 3, "head": 1}, {"layer": 2, "head": 4}],
                ),
                Bars(head_bars(), "Mean over train pairs, 95% bootstrap."),
                Lines(logit_lens(), "Answers read from the residual stream."),
            ],
        )
    )
    report.add(Section("What the heads look at", [AttentionView(attention(tokens), "A held-out prompt.")]))
    report.add(
        Section(
            "The claim",
            [
                ForestPlot(predictions(), "Predictions on held-out prompts", "10,000 paired resamples."),
                Callout("What was not shown", [
                    "That these heads are the only ones that can do it: backup heads were not searched for.",
                    "Anything about prompts longer than 16 tokens.",
                ], "caution"),
            ],
        )
    )  # fmt: skip
    report.add(
        Section(
            "How to reproduce",
            [
                Code(
                    "mechscope investigate village ioi --out r\nmechscope claim verify r/claim.json",
                    "On any machine",
                ),
                Bullets(["Needs no network.", "Takes 70 seconds on 2 cores."]),
            ],
        )
    )
    return report


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(sample().to_html(), encoding="utf-8")
