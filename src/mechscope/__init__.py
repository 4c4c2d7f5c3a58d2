"""mechscope: find the mechanism behind a behaviour, intervene on it, and prove or refute it.

This file is the curated index of public names and nothing else. Each name is imported when it is first
used, so `import mechscope` is quick and brings no torch. A name stands here only if it resolves, and
docs/api.md lists the same names; guard tests hold both.
"""

import importlib
from typing import TYPE_CHECKING

from mechscope.records.version import __version__

if TYPE_CHECKING:  # what an editor and a type checker see
    from mechscope import behaviors as behaviors
    from mechscope import circuits as circuits
    from mechscope import dictionaries as dictionaries
    from mechscope import features as features
    from mechscope import graphs as graphs
    from mechscope import superposition as superposition
    from mechscope.attribution.edges import attribute_edges as attribute_edges
    from mechscope.attribution.experts import attribute_experts as attribute_experts
    from mechscope.attribution.latents import attribute_latents as attribute_latents
    from mechscope.attribution.nodes import attribute as attribute
    from mechscope.circuits.abstraction.causal_model import CausalModel as CausalModel
    from mechscope.circuits.abstraction.das import das as das
    from mechscope.circuits.abstraction.grid import interchange_grid as interchange_grid
    from mechscope.circuits.abstraction.interchange import interchange as interchange
    from mechscope.circuits.circuit import Circuit as Circuit
    from mechscope.circuits.discover import discover as discover
    from mechscope.circuits.evaluation import evaluate_circuits as evaluate_circuits
    from mechscope.circuits.scrubbing.scrub import scrub as scrub
    from mechscope.claims.claim import Claim as Claim
    from mechscope.claims.mechanisms import Components as Components
    from mechscope.claims.mechanisms import Direction as Direction
    from mechscope.claims.neurons import Neurons as Neurons
    from mechscope.claims.predictions import Prediction as Prediction
    from mechscope.claims.predictions import lowers as lowers
    from mechscope.claims.predictions import needs as needs
    from mechscope.claims.predictions import raises as raises
    from mechscope.claims.predictions import recovers as recovers
    from mechscope.claims.predictions import spares as spares
    from mechscope.claims.sites import Sites as Sites
    from mechscope.claims.verdict import Verdict as Verdict
    from mechscope.engine.execute import run_experiments as run_experiments
    from mechscope.engine.experiment import Experiment as Experiment
    from mechscope.engine.optimal import learn_optimal as learn_optimal
    from mechscope.engine.plan import make_plan as make_plan
    from mechscope.figures.labelled import LabelledArray as LabelledArray
    from mechscope.graphs.build import attribution_graph as attribution_graph
    from mechscope.interventions.ablation import ablate as ablate
    from mechscope.interventions.clamp import clamp as clamp
    from mechscope.interventions.generated_text import GeneratedText as GeneratedText
    from mechscope.interventions.replace import edit as edit
    from mechscope.interventions.replace import freeze as freeze
    from mechscope.interventions.replace import patch as patch
    from mechscope.interventions.resolve import resolve as resolve
    from mechscope.interventions.steering import add as add
    from mechscope.interventions.steering import cap as cap
    from mechscope.interventions.steering import project_out as project_out
    from mechscope.interventions.steering import scale as scale
    from mechscope.investigations.investigate import investigate as investigate
    from mechscope.lenses.attention_patterns import attention_patterns as attention_patterns
    from mechscope.lenses.direct_attribution import direct_logit_attribution as direct_logit_attribution
    from mechscope.lenses.head_scores import head_scores as head_scores
    from mechscope.lenses.logit_lens import logit_lens as logit_lens
    from mechscope.models.model import Model as Model
    from mechscope.models.opening import load as load
    from mechscope.models.opening import wrap as wrap
    from mechscope.patching.grid import patch_grid as patch_grid
    from mechscope.patching.path import path_patch as path_patch
    from mechscope.patching.path_settings import PathConvention as PathConvention
    from mechscope.patching.trace import causal_trace as causal_trace
    from mechscope.specimens import compiled as compiled
    from mechscope.specimens import planted as planted
    from mechscope.vocabulary import errors as errors
    from mechscope.vocabulary.errors import MechscopeError as MechscopeError
    from mechscope.vocabulary.sites import Site as Site

# Public name -> "module:attribute", or "module" for a namespace.
_INDEX: dict[str, str] = {
    "load": "mechscope.models.opening:load",
    "wrap": "mechscope.models.opening:wrap",
    "Model": "mechscope.models.model:Model",
    "behaviors": "mechscope.behaviors",
    "circuits": "mechscope.circuits",
    "Circuit": "mechscope.circuits.circuit:Circuit",
    "CausalModel": "mechscope.circuits.abstraction.causal_model:CausalModel",
    "interchange": "mechscope.circuits.abstraction.interchange:interchange",
    "interchange_grid": "mechscope.circuits.abstraction.grid:interchange_grid",
    "das": "mechscope.circuits.abstraction.das:das",
    "scrub": "mechscope.circuits.scrubbing.scrub:scrub",
    "discover": "mechscope.circuits.discover:discover",
    "evaluate_circuits": "mechscope.circuits.evaluation:evaluate_circuits",
    "dictionaries": "mechscope.dictionaries",
    "features": "mechscope.features",
    "compiled": "mechscope.specimens.compiled",
    "planted": "mechscope.specimens.planted",
    "superposition": "mechscope.superposition",
    "LabelledArray": "mechscope.figures.labelled:LabelledArray",
    "Claim": "mechscope.claims.claim:Claim",
    "Verdict": "mechscope.claims.verdict:Verdict",
    "Prediction": "mechscope.claims.predictions:Prediction",
    "lowers": "mechscope.claims.predictions:lowers",
    "recovers": "mechscope.claims.predictions:recovers",
    "raises": "mechscope.claims.predictions:raises",
    "spares": "mechscope.claims.predictions:spares",
    "patch": "mechscope.interventions.replace:patch",
    "freeze": "mechscope.interventions.replace:freeze",
    "edit": "mechscope.interventions.replace:edit",
    "ablate": "mechscope.interventions.ablation:ablate",
    "resolve": "mechscope.interventions.resolve:resolve",
    "learn_optimal": "mechscope.engine.optimal:learn_optimal",
    "add": "mechscope.interventions.steering:add",
    "project_out": "mechscope.interventions.steering:project_out",
    "scale": "mechscope.interventions.steering:scale",
    "cap": "mechscope.interventions.steering:cap",
    "clamp": "mechscope.interventions.clamp:clamp",
    "GeneratedText": "mechscope.interventions.generated_text:GeneratedText",
    "Experiment": "mechscope.engine.experiment:Experiment",
    "run_experiments": "mechscope.engine.execute:run_experiments",
    "make_plan": "mechscope.engine.plan:make_plan",
    "logit_lens": "mechscope.lenses.logit_lens:logit_lens",
    "direct_logit_attribution": "mechscope.lenses.direct_attribution:direct_logit_attribution",
    "attention_patterns": "mechscope.lenses.attention_patterns:attention_patterns",
    "head_scores": "mechscope.lenses.head_scores:head_scores",
    "attribute": "mechscope.attribution.nodes:attribute",
    "attribute_edges": "mechscope.attribution.edges:attribute_edges",
    "attribute_experts": "mechscope.attribution.experts:attribute_experts",
    "attribute_latents": "mechscope.attribution.latents:attribute_latents",
    "attribution_graph": "mechscope.graphs.build:attribution_graph",
    "graphs": "mechscope.graphs",
    "patch_grid": "mechscope.patching.grid:patch_grid",
    "path_patch": "mechscope.patching.path:path_patch",
    "PathConvention": "mechscope.patching.path_settings:PathConvention",
    "causal_trace": "mechscope.patching.trace:causal_trace",
    "Components": "mechscope.claims.mechanisms:Components",
    "Direction": "mechscope.claims.mechanisms:Direction",
    "Neurons": "mechscope.claims.neurons:Neurons",
    "Sites": "mechscope.claims.sites:Sites",
    "needs": "mechscope.claims.predictions:needs",
    "investigate": "mechscope.investigations.investigate:investigate",
    "MechscopeError": "mechscope.vocabulary.errors:MechscopeError",
    "Site": "mechscope.vocabulary.sites:Site",
    "errors": "mechscope.vocabulary.errors",
}

__all__ = ["__version__", *sorted(_INDEX)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    place = _INDEX.get(name)
    if place is None:
        raise AttributeError(
            f"module 'mechscope' has no attribute {name!r}; the public names are in docs/api.md"
        )
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
