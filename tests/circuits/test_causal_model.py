"""A causal model says what every interchange predicts; that of a program says what the program says."""

from fractions import Fraction
from random import Random

import pytest

from mechscope.circuits.abstraction.causal_model import CausalModel, Variable
from mechscope.circuits.abstraction.programs import model_of_program, setting_of
from mechscope.specimens.compiled import PROGRAMS, evaluate
from mechscope.vocabulary.errors import BadProgram

SUM = CausalModel.of(
    "sum of three",
    inputs=("a", "b", "c"),
    functions={"partial": lambda a, b: a + b, "total": lambda partial, c: partial + c},
)
BASE, SOURCE = {"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 5, "c": 0}


def test_an_interchange_takes_the_variable_from_the_source_and_the_rest_from_the_base():
    assert SUM.predict(BASE) == 6
    assert SUM.predict(BASE, {"partial": SOURCE}) == 13
    assert SUM.predict(BASE, {"partial": BASE}) == 6
    assert SUM.evaluate(BASE, {"partial": 0})["total"] == 3


def test_two_variables_take_values_from_sources_of_their_own():
    high = CausalModel.of(
        "two sums",
        inputs=("a", "b", "c", "d"),
        functions={
            "left": lambda a, b: a + b,
            "right": lambda c, d: c + d,
            "both": lambda left, right: (left, right),
        },
    )
    base, one, two = ({"a": n, "b": n, "c": n, "d": n} for n in (1, 10, 100))
    assert high.predict(base, {"left": one, "right": two}) == (20, 200)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_the_causal_model_of_a_program_says_what_the_program_says(name):
    random, program = Random(1), PROGRAMS[name]
    at = [-1, 0, 2]
    models = [model_of_program(program, position=position) for position in at]
    for _ in range(10):
        words = program.draw_words(random)
        outputs = evaluate(program, words)
        assert [high.predict(setting_of(words)) for high in models] == [outputs[position] for position in at]


def test_a_rival_differs_in_the_functions_that_are_given_and_in_nothing_else():
    rival = SUM.changed("difference", {"partial": lambda a, b: a - b})
    assert rival.predict(BASE) == 2
    assert rival.variables[1] == SUM.variables[1]


def test_numbers_of_a_program_stay_fractions():
    high = model_of_program(PROGRAMS["fraction_of_previous"])
    assert high.predict(setting_of(("x", "a", "x", "a", "a", "a"))) == Fraction(1, 3)


def test_every_problem_of_a_causal_model_is_told_at_once():
    with pytest.raises(BadProgram) as refusal:
        CausalModel(
            name="broken",
            inputs=("a", "a"),
            variables=(Variable(name="late", parents=("later",), function=abs),),
            output="none",
        )
    for part in ('"a" is used twice', '"late" reads "later"', 'output "none"'):
        assert part in str(refusal.value)


def test_unknown_variables_and_missing_inputs_are_refused_with_those_that_exist():
    with pytest.raises(BadProgram, match="no such variable") as refusal:
        SUM.predict(BASE, {"product": SOURCE})
    assert "partial, total" in str(refusal.value)
    with pytest.raises(BadProgram, match="a value for every input"):
        SUM.predict({"a": 1})
