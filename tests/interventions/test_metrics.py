"""Metrics against arithmetic done by hand."""

import json
from math import exp, log

import pytest
import torch

from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import measure_logits, run_naively
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import (
    KL,
    METRICS,
    Accuracy,
    LogitDifference,
    LogProbability,
    Metric,
    ProbabilityDifference,
    Rank,
    UserMetric,
    answer_sets,
    metric_from_json,
)
from mechscope.patching.donors import run_source
from mechscope.vocabulary.errors import BadFile, NotSerializable, PositionOutOfRange, ShapeError
from mechscope.vocabulary.sites import Site
from small_models import model_of, prompts

LOGITS = torch.tensor([[1.0, 3.0, 0.0, 2.0], [0.5, -1.0, 2.5, 2.0]], dtype=torch.float64)
ANSWERS = ((1,), (2, 3))
WRONG = ((0, 2), (1,))
WHOLE = [exp(1.0) + exp(3.0) + 1.0 + exp(2.0), exp(0.5) + exp(-1.0) + exp(2.5) + exp(2.0)]
BY_HAND: dict[type[Metric], list[float]] = {
    LogitDifference: [3.0 - 0.5, 2.25 + 1.0],
    LogProbability: [3.0 - log(WHOLE[0]), log(exp(2.5) + exp(2.0)) - log(WHOLE[1])],
    ProbabilityDifference: [
        (exp(3.0) - exp(1.0) - 1.0) / WHOLE[0],
        (exp(2.5) + exp(2.0) - exp(-1.0)) / WHOLE[1],
    ],
    Rank: [0.0, 0.0],
    Accuracy: [1.0, 1.0],
}


def measured(metric: Metric, logits: torch.Tensor = LOGITS) -> list[float]:
    """A metric of one position's logits [rows, d_vocab], with only the columns that it reads."""
    columns = metric.reading().columns
    return metric.measure((logits if columns is None else logits.gather(1, columns))[:, None]).tolist()


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_metric_equals_arithmetic_by_hand(kind: type[Metric]) -> None:
    assert measured(kind(answers=ANSWERS, wrong=WRONG)) == pytest.approx(BY_HAND[kind])  # type: ignore


def test_rank_and_accuracy_see_what_ranks_higher() -> None:
    assert measured(Rank(answers=((0,), (1, 0)))) == [2.0, 2.0]
    assert measured(Accuracy(answers=((0,), (2,)))) == [0.0, 1.0]
    assert measured(Accuracy(answers=((0,), (3,)), wrong=((2,), (2,)))) == [1.0, 0.0]


@pytest.mark.parametrize("kind", [LogitDifference, ProbabilityDifference, Accuracy])
def test_foils_for_some_rows_only_are_refused(kind: type[Metric]) -> None:
    """Accuracy would call a row without a foil right, whatever the model says."""
    with pytest.raises(ShapeError, match="foils for every row or for none"):
        kind(answers=((1,), (2,)), wrong=((3,), ()))  # type: ignore
    assert LogProbability(answers=((1,), (2,)), wrong=((3,), ())).n_rows == 2, "it reads no foils"


def test_without_foils_the_logit_difference_is_the_mean_logit() -> None:
    assert measured(LogitDifference(answers=ANSWERS)) == pytest.approx([3.0, 2.25])


def test_kl_is_zero_at_the_reference_and_by_hand_elsewhere() -> None:
    reference = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, -1.0, 2.5, 2.0]], dtype=torch.float64)
    by_hand = sum(0.25 * (log(0.25) - float(x) + log(WHOLE[0])) for x in LOGITS[0])
    assert measured(KL(reference=Value(reference))) == pytest.approx([by_hand, 0.0])


def test_a_rank_beyond_half_precisions_integers_is_exact() -> None:
    logits = torch.arange(3000.0)[None].bfloat16()
    assert measured(Rank(answers=((0,),)), logits) == [float((logits > logits[0, 0]).sum())]


def test_columns_read_equal_full_logits() -> None:
    model, batch = model_of(), prompts()
    logits = model.logits(batch)
    metric = LogitDifference(answers=((3,), (4, 5)), wrong=((6, 7), (8,)), position=-2)
    wanted = [
        logits[0, -2, 3] - logits[0, -2, [6, 7]].mean(),
        logits[1, -2, [4, 5]].mean() - logits[1, -2, 8],
    ]
    assert torch.allclose(measure_logits(metric, batch, logits), torch.stack(wanted))
    first = LogProbability(answers=((3,), (4,)), position=0)
    wanted = [logits[0, 0].log_softmax(-1)[3], logits[1, 3].log_softmax(-1)[4]]
    assert torch.allclose(measure_logits(first, batch, logits), torch.stack(wanted)), (
        "position 0 is after padding"
    )


@pytest.mark.parametrize("kind", METRICS)
def test_metrics_of_answers_survive_json_and_select_rows(kind: str) -> None:
    metric = METRICS[kind](answers=ANSWERS, wrong=WRONG, position=-2)
    again = metric_from_json(json.loads(json.dumps(metric.to_json())))
    assert again == metric and hash(again) == hash(metric)
    row = metric.select([1])
    assert row.n_rows == 1
    assert measured(row, LOGITS[1:]) == pytest.approx(measured(metric)[1:])
    assert metric_from_json(METRICS[kind](answers=ANSWERS).to_json()) != metric


def test_kl_selects_its_reference_rows_and_survives_json_with_its_tensor() -> None:
    metric = KL(reference=Value(LOGITS.flip(0)), position=-2)
    assert measured(metric.select([1]), LOGITS[1:]) == pytest.approx(measured(metric)[1:])
    tensors: dict[str, torch.Tensor] = {}
    saved = json.loads(json.dumps(metric.to_json(tensors)))
    assert metric_from_json(saved, tensors) == metric
    assert hash(metric_from_json(saved, tensors)) == hash(metric)
    with pytest.raises(BadFile, match="tensor is missing"):
        metric_from_json(saved)
    with pytest.raises(BadFile, match="tensor was changed"):
        metric_from_json(saved, {digest: value + 1 for digest, value in tensors.items()})
    with pytest.raises(BadFile, match="not a metric that can be saved"):
        metric_from_json({"kind": "user"})


def test_a_metric_says_which_positions_and_columns_it_reads() -> None:
    pairs = [[1, 1, 0, 2], [2, 3, 1, 0]]  # sets of unequal size are filled up with token 0, which is masked
    for kind in (LogitDifference, Accuracy):
        reading = kind(answers=ANSWERS, wrong=WRONG, position=-2).reading()
        assert reading.positions == (-2,)
        assert reading.columns is not None and set(reading.columns[1].tolist()) == set(pairs[1])
    for kind in (LogProbability, ProbabilityDifference, Rank):
        assert kind(answers=ANSWERS, wrong=WRONG).reading().columns is None, "probabilities need every column"
    assert Accuracy(answers=ANSWERS).reading().columns is None, "without foils every token is a rival"


def test_a_users_function_reads_its_positions_and_cannot_be_saved() -> None:
    metric = UserMetric(function=lambda logits: logits[:, 0, 1] - logits[:, 1, 1], positions=(-1, 0))
    logits = model_of().logits(prompts())
    wanted = torch.stack([logits[0, -1, 1] - logits[0, 0, 1], logits[1, -1, 1] - logits[1, 3, 1]])
    assert torch.allclose(measure_logits(metric, prompts(), logits), wanted)
    with pytest.raises(NotSerializable):
        metric.to_json()
    with pytest.raises(ShapeError, match="one number a row"):
        measured(UserMetric(function=lambda logits: logits.sum()))


def test_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="answer for every row"):
        LogitDifference(answers=((), (1,)))
    with pytest.raises(ShapeError, match="answer for every row"):
        LogitDifference(answers=((2,), (1,)), wrong=((3,),))
    for metric in (LogitDifference(answers=((1,),)), Rank(answers=((1,),)), KL(reference=Value(LOGITS[:1]))):
        with pytest.raises(ShapeError, match="another number of rows"):
            metric.measure(LOGITS[:, None])


def test_answer_sets_take_ids_and_sets() -> None:
    assert answer_sets([3, 5]) == ((3,), (5,))
    assert answer_sets([[3, 4], [5]]) == ((3, 4), (5,))


@pytest.mark.parametrize(
    "metric",
    [
        LogitDifference(answers=((1,), (2,)), wrong=((3,), (4,)), position=-6),
        LogProbability(answers=((1,), (2,)), position=5),
        UserMetric(function=lambda logits: logits[:, 0, 3], positions=(-1, -6)),
        LogitDifference(answers=((-1,), (2,))),
        LogitDifference(answers=((1,), (2,)), wrong=((3,), (37,))),
        Rank(answers=((-1,), (2,))),
    ],
)
def test_what_the_prompts_or_the_vocabulary_lack_is_refused_and_not_read_elsewhere(metric: Metric) -> None:
    """The second prompt has 5 tokens behind 3 columns of padding; the vocabulary has 37."""
    model, batch = model_of(), prompts()
    experiment = Experiment(inputs=batch, metric=metric)
    for run in (run_experiments, run_naively):
        with pytest.raises(PositionOutOfRange):
            run(model, [experiment])
    with pytest.raises(PositionOutOfRange):
        run_source(model, batch, sites=[Site("z", 1)], metric=metric)


def test_the_outermost_positions_and_ids_are_read() -> None:
    model, batch = model_of(), prompts()
    logits = model.logits(batch)
    for position in (-5, 4):
        metric = LogitDifference(answers=((0,), (36,)), position=position)
        found = run_experiments(model, [Experiment(inputs=batch, metric=metric)])[0]
        columns = (position, 3 + position) if position > 0 else (position, position)
        wanted = [float(logits[0, columns[0], 0]), float(logits[1, columns[1], 36])]
        assert found.tolist() == pytest.approx(wanted, rel=1e-12)
