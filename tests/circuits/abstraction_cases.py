"""What the tests of causal abstraction share: examples of compiled programs, and a model whose basis is rotated."""

from functools import cache
from random import Random

import torch
from torch import Tensor

from family_cases import opened
from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.programs import model_of_program, setting_of
from mechscope.models.model import Model
from mechscope.models.opening import load, wrap
from mechscope.specimens.compiled import PROGRAMS, compile_program
from tiny_models import VOCABULARY


@cache
def program(name: str = "reverse") -> tuple[Model, CausalModel]:
    """A bundled compiled program and its causal model."""
    return load(f"compiled/{name}"), model_of_program(PROGRAMS[name])


def words_of(setting: dict[str, str]) -> str:
    return " ".join(setting[f"word@{at}"] for at in range(len(setting)))


@cache
def examples(name: str = "reverse", n: int = 200) -> Examples:
    """Sequences of a program."""
    model, high = program(name)
    return draw(model, high, name, n)


def draw(model: Model, high: CausalModel, name: str, n: int) -> Examples:
    random = Random(0)
    settings = [setting_of(PROGRAMS[name].draw_words(random)) for _ in range(n)]
    return Examples.of(model, high, settings=settings, prompt=words_of, answer=str)


@cache
def rotated(name: str = "reverse") -> tuple[Model, CausalModel, Tensor]:
    """A compiled program in another basis of the residual stream, exactly; its old axes are the matrix's rows."""
    compiled = compile_program(PROGRAMS[name])
    state = compiled.network.state_dict()
    d_model = compiled.network.config.d_model
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))[0]
    with torch.no_grad():
        for key, value in state.items():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                value.copy_(turn.T @ value.double())
            elif key.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias", "up_proj.bias")):
                continue
            else:
                value.copy_(value.double() @ turn)
    return wrap(compiled.network, compiled.tokenizer), model_of_program(PROGRAMS[name]), turn


@cache
def tiny_examples(name: str, lengths: tuple[int, ...]) -> tuple[Model, CausalModel, Examples]:
    """Random prompts of a random model, with a causal model that says something of them."""
    high = CausalModel.of(
        "parity",
        inputs=("ids",),
        functions={"first": lambda ids: ids[0] % 3, "answer": lambda first, ids: first + ids[1] % 2},
    )
    model = opened(name)
    generator = torch.Generator().manual_seed(1)
    settings = [{"ids": torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()} for n in lengths]
    return (
        model,
        high,
        Examples.of(model, high, settings=settings, prompt=lambda s: list(s["ids"]), answer=int),
    )
