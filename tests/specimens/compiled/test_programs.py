"""A compiled model says what its program means, on every input; a spoilt weight is seen."""

import operator
from itertools import product
from random import Random

import pytest
import torch
from torch import Tensor

from mechscope.models.native import NativeForCausalLM
from mechscope.specimens.compiled import (
    PROGRAMS,
    Compiled,
    Program,
    add,
    apply,
    compile_program,
    copy,
    evaluate,
    everything,
    indices,
    mean,
    select,
    tokens,
    width,
)
from mechscope.specimens.compiled.checking import word_of
from mechscope.specimens.compiled.tokenizer import BOS
from mechscope.vocabulary.errors import BadProgram

FEW = 600


def sequences(program: Program, n: int | None) -> list[tuple[str, ...]]:
    """All sequences of full length, or n of them."""
    rows = list(product(program.alphabet, repeat=program.length))
    rows = rows if n is None or len(rows) <= n else Random(0).sample(rows, n)
    return [row for row in rows if program.name != "sort_unique" or len(set(row)) == len(row)] or rows


def logits_of(
    compiled: Compiled, rows: list[tuple[str, ...]], network: NativeForCausalLM | None = None
) -> Tensor:
    ids = torch.tensor([[BOS, *(compiled.vocabulary.ids[word] for word in row)] for row in rows])
    with torch.no_grad():
        return (network or compiled.network)(ids).logits[:, 1:]


def greatest_error(
    compiled: Compiled, rows: list[tuple[str, ...]], network: NativeForCausalLM | None = None
) -> float:
    """Share of wrong most probable tokens, or for a number the greatest error; over all positions."""
    logits, program = logits_of(compiled, rows, network), compiled.program
    wanted = [evaluate(program, row) for row in rows]
    if compiled.plan.domains[program.output].is_number:
        numbers = torch.tensor([[float(value) for value in row] for row in wanted])
        return float((logits[..., compiled.vocabulary.answers[0]] - numbers).abs().max())
    ids = torch.tensor([[compiled.vocabulary.ids[word_of(value)] for value in row] for row in wanted])
    return float((logits.argmax(-1) != ids).double().mean())


def test_every_program_is_exact(compiled: Compiled) -> None:
    is_number = compiled.plan.domains[compiled.program.output].is_number
    assert greatest_error(compiled, sequences(compiled.program, FEW)) <= (1e-4 if is_number else 0.0)


@pytest.mark.slow
def test_every_program_is_exact_on_all_inputs(compiled: Compiled) -> None:
    rows = sequences(compiled.program, None)
    assert len(rows) >= 243
    is_number = compiled.plan.domains[compiled.program.output].is_number
    assert greatest_error(compiled, rows) <= (1e-4 if is_number else 0.0)


def test_shorter_sequences_are_computed_too(compiled: Compiled) -> None:
    if compiled.program.name == "reverse":  # written for sequences that are filled up
        return
    rows = [row[:3] for row in sequences(compiled.program, 100)]
    assert greatest_error(compiled, rows) <= 1e-4


def test_spoiling_any_node_that_has_a_role_is_seen_and_spoiling_distractors_changes_nothing(
    compiled: Compiled,
) -> None:
    rows = sequences(compiled.program, 200)
    before = logits_of(compiled, rows)
    for node in compiled.wiring.nodes:
        if node.layer is None:
            continue
        spoilt = NativeForCausalLM(compiled.network.config)
        spoilt.load_state_dict(compiled.network.state_dict())
        layer = spoilt.model.layers[node.layer]
        with torch.no_grad():
            if node.head is None:
                layer.mlp.down_proj.weight.mul_(0.5)
            else:
                d_head = compiled.network.config.d_head
                layer.attn.o_proj.weight[:, node.head * d_head : (node.head + 1) * d_head].mul_(0.5)
        if node in compiled.blueprint.distractors:
            assert torch.equal(logits_of(compiled, rows, spoilt.eval()), before), node
        else:
            assert node in compiled.blueprint.roles
            assert (logits_of(compiled, rows, spoilt.eval()) - before).abs().max() > 0.1, node


def test_a_spoilt_weight_is_caught_by_the_comparison_with_the_meaning() -> None:
    compiled = compile_program(PROGRAMS["reverse"])
    head = next(n for n in compiled.blueprint.roles if n.layer == 1 and n.head is not None)
    rows = slice(head.head * compiled.network.config.d_head, (head.head + 1) * compiled.network.config.d_head)  # type: ignore
    with torch.no_grad():
        compiled.network.model.layers[1].attn.q_proj.weight[rows] *= -1
    assert greatest_error(compiled, sequences(compiled.program, 100)) > 0.1


def test_equal_programs_give_equal_weights(compiled: Compiled) -> None:
    again = compile_program(compiled.program).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in compiled.network.state_dict().items())


def test_a_program_of_ones_own_compiles_with_several_conditions_and_sums() -> None:
    earlier = select(indices, indices, operator.lt)
    same = select(tokens, tokens, operator.eq)
    seen = apply(lambda count: count > 0, width(earlier & same))
    is_a = apply(lambda word: word == "a", tokens)
    balance = add(mean(everything, is_a), mean(earlier, apply(int, seen)))
    program = Program(
        name="own",
        output=apply(lambda total, again: f"{'again' if again else 'new'}{int(total > 0.7)}", balance, seen),
        alphabet=("a", "b"),
        length=4,
    )
    compiled = compile_program(program)
    assert greatest_error(compiled, sequences(program, None)) == 0.0
    assert evaluate(program, ["a", "b", "a", "a"])[:3] == ["new1", "new1", "again1"]
    causal = Program(name="own", output=program.output, alphabet=("a", "b"), length=4, is_causal=True)
    assert greatest_error(compile_program(causal), sequences(causal, None)) == 0.0
    assert any(evaluate(causal, row) != evaluate(program, row) for row in sequences(program, None))


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_a_copy_leaves_at_the_beginning_is_read_by_nothing(is_causal: bool) -> None:
    """A copy writes its `otherwise` at [BOS] too; copies, selectors, means and functions of it must not see that."""
    start = apply(lambda _: 0, indices)
    first = copy(select(indices, start, operator.eq), tokens, otherwise="b")
    before = apply(lambda index: index - 2, indices)
    outputs = [
        copy(select(indices, before, operator.eq), first, otherwise="n"),
        copy(
            select(indices, before, operator.eq) & select(first, tokens, operator.eq), tokens, otherwise="n"
        ),
        apply(lambda share: share > 0.5, mean(everything, apply(lambda word: int(word == "b"), first))),
        mean(select(first, tokens, operator.ne), apply(lambda word: int(word == "b"), first)),
        apply(lambda count: count, width(select(first, tokens, operator.eq))),
        apply(lambda one, other: f"{one}{other}", first, tokens),
    ]
    for number, output in enumerate(outputs):
        program = Program(
            name=f"own_{number}", output=output, alphabet=("a", "b"), length=4, is_causal=is_causal
        )
        for n in (4, 2):
            rows = list(product(program.alphabet, repeat=n))
            assert greatest_error(compile_program(program), rows) < 1e-4, (number, n)


def test_every_problem_of_a_program_is_told_at_once() -> None:
    number = mean(everything, apply(lambda word: int(word == "a"), tokens))
    output = copy(
        select(number, indices, operator.eq) & select(tokens, tokens, lambda key, query: key < 1),
        apply(lambda one, two: one + two, number, width(everything), name="both"),
        otherwise="",
    )
    with pytest.raises(BadProgram) as caught:
        compile_program(Program(name="bad", output=output, alphabet=("a", "a", "b c", "zero"), length=3))
    told = (
        "a selector reads",
        "predicate fails",
        '"both" reads 2 numbers',
        "'a' twice",
        "a space",
        "reserved",
    )
    assert all(words in str(caught.value) for words in told)
    assert "6 problems" in caught.value.what


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (width(everything), "the output is a width"),
        (mean(everything, tokens), "are not numbers"),
        (add(width(everything)), "other than means"),
        (apply(lambda: 1), "has no arguments"),
        (apply(lambda word: "x y", tokens), "is no word"),
        (apply(lambda index: index if index else "1", indices), "are both written '1'"),
        (apply(lambda word: {}, tokens), "unhashable"),
    ],
)
def test_a_series_that_can_not_be_compiled_is_refused(output: object, words: str) -> None:
    with pytest.raises(BadProgram, match=words):
        compile_program(Program(name="bad", output=output, alphabet=("a", "b"), length=3))  # type: ignore


def test_a_copy_of_several_values_has_no_meaning() -> None:
    program = Program(
        name="bad", output=copy(everything, tokens, otherwise="a"), alphabet=("a", "b"), length=2
    )
    assert evaluate(program, ["a", "a"]) == ["a", "a"]
    with pytest.raises(BadProgram, match="whose values differ"):
        evaluate(program, ["a", "b"])
