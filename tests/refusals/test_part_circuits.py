"""Unknown words of circuits of latents and experts are refused by our own error."""

from typing import Any

import pytest

from circuits.cases import pairs
from family_cases import opened
from mechscope.attribution.latents import attribute_latents
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts
from mechscope.circuits.parts.latents import choose_latents
from mechscope.vocabulary.errors import InterventionMismatch


def test_what_happens_to_errors_is_said() -> None:
    unknown: Any = "some"
    with pytest.raises(InterventionMismatch, match=r"(?s)got: .*'some'.*because:.*instead:.*'kept'"):
        choose_latents(opened("llama"), pairs(), dictionaries=[], n_latents=3, errors=unknown)


def test_an_unknown_routing_is_refused() -> None:
    unknown: Any = "free"
    for call in (
        lambda: choose_experts(opened("mixtral"), pairs(), n_experts=3, routing=unknown),
        lambda: ExpertCircuit.of(opened("mixtral"), experts={0: (1,)}, routing=unknown),
    ):
        with pytest.raises(InterventionMismatch, match=r"(?s)no routing.*recomputed, frozen"):
            call()


def test_an_unknown_direction_or_ablation_of_an_attribution_is_refused() -> None:
    unknown: Any = "both"
    for said in ({"direction": unknown}, {"removed": unknown}, {"method": unknown}):
        with pytest.raises(InterventionMismatch, match="both"):
            attribute_latents(opened("llama"), pairs(), dictionaries=[], **said)


def test_constants_of_whole_writers_are_no_values_of_latents() -> None:
    constants: Any = object()
    conventions = Conventions(ablation="optimal", constants=constants)
    with pytest.raises(InterventionMismatch, match=r"(?s)no value under.*optimal.*instead:"):
        choose_experts(opened("mixtral"), pairs(), n_experts=3, routing="frozen", conventions=conventions)
