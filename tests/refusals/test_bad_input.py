"""Bad input that no command can give: refused before anything runs, in the four-line form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechscope as ms
from mechscope.vocabulary.errors import MechscopeError

PROMPT = "ember apple badge ember"


@pytest.fixture(scope="module")
def model() -> ms.Model:
    return ms.load("induction")


def run_with(*interventions: Any) -> Callable[[ms.Model], Any]:
    return lambda model: model.run(PROMPT, interventions=interventions)


CASES: dict[str, tuple[Callable[[ms.Model], Any], str]] = {
    "unknown site": (lambda model: model.run(PROMPT, capture="resid_prex.0"), "UnknownSite"),
    "unknown layer": (lambda model: model.run(PROMPT, capture="resid_pre.9"), "UnknownSite"),
    "wrong width": (run_with(ms.patch("resid_pre.1", torch.zeros(1, 5, 7))), "ShapeError"),
    "direction of another width": (
        run_with(ms.project_out("resid_pre.1", torch.ones(7))),
        "ShapeError",
    ),
    "position out of range": (run_with(ms.ablate("resid_pre.1", "zero", positions=40)), "PositionOutOfRange"),
    "head out of range": (run_with(ms.ablate("z.1", "zero", heads=[16])), "PositionOutOfRange"),
    "empty prompt": (lambda model: model.run([[]]), "EmptyPrompt"),
    "no prompts": (lambda model: model.run([]), "EmptyPrompt"),
    "prompt longer than the context": (lambda model: model.run("badge " * 200), "PromptTooLong"),
    "mismatched pair lengths": (
        lambda model: ms.behaviors.from_tokens([[1, 2]], [[1, 2, 3]], answers=[1], wrong=[2]),
        "PairLengthMismatch",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_four_lines(
    model: ms.Model, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.hf, "forward", lambda *_, **__: pytest.fail("work had started"))
    act, name = CASES[case]
    with pytest.raises(MechscopeError) as refusal:
        act(model)
    assert type(refusal.value).__name__ == name, refusal.value
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert any(line.startswith("  got:") for line in lines)
    assert any(line.startswith(("  because:", "  instead:")) for line in lines)
    assert lines[-1].endswith(f"[docs/errors/{refusal.value.slug}]")


def test_the_same_prompt_without_a_fault_does_run(model: ms.Model) -> None:
    model.run(PROMPT, interventions=[ms.ablate("resid_pre.1", "zero", positions=1)], capture="resid_pre.0")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.hf, "forward", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):  # so the tripwire of the test above is on the way
            model.run(PROMPT)
