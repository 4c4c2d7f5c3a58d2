"""The micro-model's numbers, worked out by hand: every first-order method gives them exactly, since it is linear."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from mechscope.attribution.edges import METHODS, attribute_edges
from mechscope.attribution.nodes import attribute
from mechscope.attribution.settings import EdgeSettings
from mechscope.engine.edge_runs.ablations import Resampled
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.metrics import UserMetric
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.patching.path import path_patch
from mechscope.specimens.compiled.micro import (
    CLEAN,
    CLEAN_LOGITS,
    CORRUPT,
    CORRUPT_LOGITS,
    EFFECTS,
    HEALING,
    make_micro,
)
from mechscope.vocabulary.edges import Edge

HEADS = {(0, 0): "embed->a0.0.v", (0, 1): "embed->a0.1.v", (1, 0): "a1.0->logits", (1, 1): "a1.1->logits"}
"""An edge that everything which the head does flows through."""


@dataclass(frozen=True)
class OneToken:
    clean: TokenBatch
    corrupt: TokenBatch
    metric: UserMetric


@cache
def micro() -> Model:
    return wrap(make_micro())


def pairs(logit: int) -> OneToken:
    prompts = (batch_of([[token]], pad_id=0) for token in (CLEAN, CORRUPT))
    return OneToken(*prompts, UserMetric(function=lambda logits: logits[:, 0, logit]))


def wanted(edge: Edge, logit: int) -> float:
    return EFFECTS.get(edge, (0.0, 0.0))[logit]


@pytest.mark.parametrize("logit", [0, 1])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("method", METHODS)
def test_edge_attribution_gives_the_numbers_worked_out_by_hand(method, direction, logit):
    sign = 1.0 if direction == "noising" else -1.0
    found = attribute_edges(micro(), pairs(logit), method=method, direction=direction)
    for edge, score in zip(found.edges, found.scores.tolist(), strict=True):
        assert score == pytest.approx(sign * wanted(edge, logit), abs=1e-4), edge
    assert sum(score != 0 for score in found.scores.tolist()) == len(EFFECTS)


@pytest.mark.parametrize("logit", [0, 1])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("method", ["attribution", "ig", "relp"])
def test_node_attribution_gives_what_flows_through_a_head(method, direction, logit):
    sign = 1.0 if direction == "noising" else -1.0
    found = attribute(micro(), pairs(logit), site="z", method=method, direction=direction).scores
    for (layer, head), edge in HEADS.items():
        score = float(found.sel(layer=layer, head=head).values)
        assert score == pytest.approx(sign * wanted(Edge.parse(edge), logit), abs=1e-4), (layer, head)


def test_exact_removal_of_one_edge_equals_the_same_numbers_and_so_do_paths():
    for logit in (0, 1):
        given = pairs(logit)
        runs = EdgeRuns(micro(), given.clean, metric=given.metric, ablation=Resampled(prompts=given.corrupt))
        edges = list(runs.wiring.edges())
        without = ~np.eye(len(edges), dtype=bool)
        effects = runs.measure(without)[:, 0] - CLEAN_LOGITS[logit]
        assert effects.tolist() == [wanted(edge, logit) for edge in edges]
        receivers = list(dict.fromkeys(str(edge).split("->")[1] for edge in edges))
        paths = path_patch(micro(), given, receivers=receivers).per_pair
        for edge in edges:
            source, target = str(edge).split("->")
            value = float(paths.sel(sender=source, receiver=target).values[0])
            assert value - CLEAN_LOGITS[logit] == wanted(edge, logit), edge


def test_healing_the_strongest_edges_one_by_one_gives_the_published_logits():
    given = pairs(0)
    runs = EdgeRuns(micro(), given.corrupt, metric=given.metric, ablation=Resampled(prompts=given.clean))
    index = {edge: i for i, edge in enumerate(runs.wiring.edges())}
    circuit = runs.every
    assert tuple(runs.logits([circuit])[0, 0, 0].tolist()) == CORRUPT_LOGITS
    for name, logits in HEALING:
        circuit[index[Edge.parse(name)]] = False
        assert tuple(runs.logits([circuit])[0, 0, 0].tolist()) == logits


def test_steps_and_rules_change_nothing_where_all_is_linear():
    for rule in ("left", "midpoint"):
        settings = EdgeSettings(steps=3, rule=rule)
        found = attribute_edges(micro(), pairs(1), method="eap-ig", settings=settings)
        hand = torch.tensor([wanted(edge, 1) for edge in found.edges])
        assert torch.allclose(found.scores.float(), hand, atol=1e-4)
