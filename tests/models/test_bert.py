"""BERT: what points mean where norms stand on the stream, and what is refused because of it.

Values, writes, gradients, padding and replay are the contract suite's, which takes both of its tiny models.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
)

import mechscope as ms
from arithmetic_forward import in_double
from family_cases import opened, rows
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import run_naively
from mechscope.interventions.metrics import LogitDifference
from mechscope.models.anatomy import Anatomy, Head, Part
from mechscope.models.binding import Binding
from mechscope.models.identity import Identity
from mechscope.models.model import Model
from mechscope.models.opening import describe, wrap
from mechscope.models.self_check import check_model
from mechscope.vocabulary.errors import PointUnavailable, UnsupportedModel
from nudge import Nudge
from tiny_models import tiny

BOTH = ("bert", "bert_decoder")
SPOILS: dict[str, tuple[Callable[[Anatomy], Anatomy], str, str]] = {
    "a norm's epsilon": (
        lambda a: with_norm(a, "ln1", eps=0.5),
        "identities",
        "residual + attention, normed = resid_mid",
    ),
    "a norm's kind": (
        lambda a: with_norm(a, "ln2", kind="rms"),
        "identities",
        "resid_mid + MLP, normed = residual",
    ),
    "the sum before the norm": (
        lambda a: with_part(a, "resid_mid", Part("attention.output.LayerNorm", "input")),
        "identities",
        "resid_mid + MLP, normed = residual",
    ),
    "what the norm returns as what is added": (
        lambda a: with_part(a, "attn_out", Part("attention.output")),
        "identities",
        "residual + attention, normed = resid_mid",
    ),
    "a head without its transform": (
        lambda a: replace(a, head=Head(module="cls.predictions.decoder", predicts="own")),
        "identities",
        "norm and head = logits",
    ),
    "a direction that is not there": (
        lambda a: replace(a, is_causal=True),
        "causality",
        "earlier logits after another last token",
    ),
}


def with_norm(anatomy: Anatomy, name: str, **changes: Any) -> Anatomy:
    return replace(anatomy, norms={**anatomy.norms, name: replace(anatomy.norms[name], **changes)})


def with_part(anatomy: Anatomy, point: str, part: Part) -> Anatomy:
    return replace(anatomy, parts={**anatomy.parts, point: part})


def failed(hf: Any, anatomy: Anatomy) -> list[tuple[str, str]]:
    model = Model(Binding(hf, anatomy), None, identity=Identity(name="spoilt"))
    return [(f.part, f.what.split(", layer")[0]) for f in check_model(model) if not f.holds]


@pytest.mark.parametrize("what", SPOILS)
def test_the_self_check_sees(what: str) -> None:
    spoil, part, line = SPOILS[what]
    hf = tiny("bert")  # it opens unspoilt: test_self_check.py
    assert (part, line) in failed(hf, spoil(describe(hf)))


def test_padding_whose_positions_are_not_said_is_seen() -> None:
    model = Model(Binding(tiny("bert"), describe(tiny("bert"))), None, identity=Identity(name="spoilt"))
    model.binding.takes_positions = False
    assert "padding" in {finding.part for finding in check_model(model) if not finding.holds}


def test_the_stream_is_what_each_norm_returns() -> None:
    model, batch = opened("bert"), rows()
    layer = model.binding.layers[1]
    with torch.no_grad(), in_double():
        run = model.run(batch, capture="*")
        mid = layer.attention.output.LayerNorm(run["resid_pre.1"] + run["attn_out.1"])  # type: ignore
        post = layer.output.LayerNorm(run["resid_mid.1"] + run["mlp_out.1"])  # type: ignore
    assert torch.equal(run["resid_mid.1"], mid) and torch.equal(run["mlp_in.1"], mid)
    assert torch.equal(run["resid_post.1"], post) and torch.equal(run["resid_pre.2"], post)
    assert torch.equal(run["attn_raw.1"], run["attn_out.1"])


@pytest.mark.parametrize("family", BOTH)
def test_a_write_to_the_stream_reaches_the_mlp_and_the_skip_connection(family: str) -> None:
    model, batch = opened(family), rows()
    layer = model.binding.layers[1]
    with torch.no_grad(), in_double():
        both = model.run(batch, interventions=[Nudge("resid_mid.1")], capture="*")
        branch = model.run(batch, interventions=[Nudge("mlp_in.1")], capture="*")
        post = layer.output.LayerNorm(both["resid_mid.1"] + both["mlp_out.1"])  # type: ignore
    assert torch.equal(both["mlp_out.1"], branch["mlp_out.1"]), "the MLP reads the same"
    assert torch.equal(both["resid_post.1"], post)
    assert float((both["resid_post.1"] - branch["resid_post.1"]).abs().max()) > 1e-2, "the stream does not"


@pytest.mark.parametrize(
    ("point", "instead"),
    [
        ("ln1.1", "resid_mid.1"),
        ("ln1_scale.1", "resid_mid.1"),
        ("ln1_normalized.1", "resid_mid.1"),
        ("ln2.1", "resid_post.1"),
        ("ln2_scale.1", "resid_post.1"),
        ("blocks.1.ln2.hook_normalized", "resid_post.1"),
        ("ln_final_scale", "ln_final"),
        ("ln_final_normalized", "ln_final"),
        ("q_pre.0", "q_proj.0, q.0"),
        ("mlp_gate.0", "mlp_pre.0, mlp_post.0"),
        ("sink.0", "scores.0"),
        ("router_logits.0", "mlp_in.0"),
        ("blocks.1.hook_resid_mid", "resid_mid.1, what the norm returns; what was added to it is attn_out.1"),
        ("blocks.1.hook_mlp_in", "resid_mid.1, what the norm returns; what was added to it is attn_out.1"),
        (
            "blocks.1.hook_resid_post",
            "resid_post.1, what the norm returns; what was added to it is mlp_out.1",
        ),
        ("mlp_in.0,blocks.1.hook_resid_post", "resid_post.1"),
    ],
)
def test_a_point_without_a_meaning_here_is_refused_by_name(point: str, instead: str) -> None:
    with pytest.raises(PointUnavailable) as refused:
        opened("bert").run([[1, 2, 3]], capture=[point])
    assert f"instead:  {instead}" in str(refused.value) and "because:" in str(refused.value)


def test_foreign_names_that_mean_the_same_are_translated() -> None:
    model = opened("bert")
    names = [
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_mlp_out",
        "blocks.1.attn.hook_z",
    ]
    assert [str(model.binding.site(name)) for name in names] == [
        "resid_pre.1",
        "attn_out.1",
        "mlp_out.1",
        "z.1",
    ]


def experiments() -> list[Experiment]:
    """Patches of every kind of site that a replay treats in its own way, at one token and at all."""
    model, batch = opened("bert"), rows(4)
    other = rows(4).ids.roll(1, dims=1)
    donor = model.run(
        replace(batch, ids=other), capture=[s for s in model.binding.formed if s.row.is_writable]
    )
    metric = LogitDifference(answers=((1,), (2,), (3,), (4,)), wrong=((5,), (6,), (7,), (8,)), position=2)
    sites = ("embed", "resid_pre.1", "k.1", "pattern.1", "z.2", "attn_out.0", "resid_mid.1", "mlp_post.2")
    sites = (*sites, "resid_post.0", "resid_post.2", "ln_final", "logits")
    patched = [(ms.patch(site, donor, positions=where),) for site in sites for where in (None, [4])]
    return [Experiment(inputs=batch, writes=writes, metric=metric) for writes in ((), *patched)]


def test_replayed_and_late_experiments_equal_whole_forwards() -> None:
    with in_double():
        wanted = run_naively(opened("bert"), experiments()).table()
        found = run_experiments(opened("bert"), experiments()).table()
    assert float((found - wanted).abs().max()) < 1e-10
    assert float((wanted[2] - wanted[0]).abs().min()) > 1e-3, "a later word is felt at an earlier position"


def test_a_replay_that_took_it_for_causal_is_noticed() -> None:
    hf = tiny("bert", torch.float64)
    wrong = Model(Binding(hf, replace(describe(hf), is_causal=True)), None, identity=Identity(name="wrong"))
    with in_double():
        wanted = run_naively(opened("bert"), experiments()).table()
        found = run_experiments(wrong, experiments()).table()
    assert float((found - wanted).abs().max()) > 1e-3


def test_a_padded_batch_without_our_positions_would_be_another() -> None:
    model, batch = opened("bert"), rows()
    with torch.no_grad(), in_double():
        ours = model.logits(batch)[1, 3:]
        alone = model.hf(input_ids=torch.tensor([batch.row(1)])).logits[0]
        plain = model.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[1, 3:]
    assert float((ours - alone).abs().max()) < 1e-10
    assert float((plain - alone).abs().max()) > 1e-3


def test_the_causal_one_is_a_causal_model() -> None:
    anatomy = opened("bert_decoder").binding.anatomy
    assert anatomy.is_causal and anatomy.head.predicts == "next" and anatomy.is_stream_normed
    assert torch.isfinite(opened("bert_decoder").loss(rows()))


def test_the_causal_class_without_its_mask_is_the_masked_model() -> None:
    masked = tiny("bert")
    hf = BertLMHeadModel(masked.config).eval()  # type: ignore
    hf.load_state_dict(masked.state_dict())
    model = wrap(hf, check=False)
    assert not model.binding.anatomy.is_causal and model.binding.anatomy.head.predicts == "own"
    with torch.no_grad():
        assert torch.equal(model.logits(rows()), wrap(masked, check=False).logits(rows()))


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 11,
}
SMALL |= {"intermediate_size": 8, "max_position_embeddings": 12}


@pytest.mark.parametrize(
    "changes", [{"chunk_size_feed_forward": 4}, {"is_decoder": True, "add_cross_attention": True}]
)
def test_a_variant_whose_layers_do_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="This BERT variant is not opened"):
        wrap(tiny("bert", **changes))


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification, BertForPreTraining])
def test_a_class_that_gives_no_logits_over_the_vocabulary_is_refused(kind: Any) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        wrap(kind(BertConfig(**SMALL)).eval())
    assert kind.__name__ in str(refused.value) and "instead:" in str(refused.value)


def test_a_checkpoint_opens_with_the_head_that_it_was_saved_with(tmp_path: Any) -> None:
    hf = tiny("bert")
    hf.save_pretrained(tmp_path)  # type: ignore
    model = ms.load(tmp_path, check=False)
    assert type(model.hf).__name__ == "BertForMaskedLM" and not model.binding.anatomy.is_causal
    with torch.no_grad():
        assert torch.equal(model.logits([[1, 2, 3]]), wrap(hf, check=False).logits([[1, 2, 3]]))
    tiny("bert_decoder").save_pretrained(tmp_path / "causal")  # type: ignore
    assert type(ms.load(tmp_path / "causal", check=False).hf).__name__ == "BertLMHeadModel"


def test_a_checkpoint_without_its_language_head_is_refused(tmp_path: Any) -> None:
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ms.errors.NotAModel, match="lacks weights of") as refused:
        ms.load(tmp_path)
    assert "cls.predictions" in str(refused.value) and "at random" in str(refused.value)
