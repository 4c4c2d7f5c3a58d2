"""Circuits: which edges of a model carry a behaviour. Found, evaluated against controls, drawn and kept."""

from mechscope.circuits.abstraction.causal_model import CausalModel, Variable
from mechscope.circuits.abstraction.das import DasResult
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.grid import InterchangeGrid
from mechscope.circuits.abstraction.interchange import Interchanging
from mechscope.circuits.abstraction.interchanges import Interchanges, draw_interchanges
from mechscope.circuits.abstraction.learning import Das
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.programs import model_of_program, setting_of
from mechscope.circuits.abstraction.result import InterchangeResult
from mechscope.circuits.abstraction.row_space import RowSpace, row_space_of
from mechscope.circuits.against_truth import AgainstTruth, auroc, compare_with_truth
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.methods.acdc import acdc_sweep
from mechscope.circuits.optimal import learn_constants
from mechscope.circuits.parts.evaluation import PartEvaluation, PartMeasures
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts, evaluate_experts
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents, evaluate_latents
from mechscope.circuits.positional import PositionalCircuit
from mechscope.circuits.positional_discovery import discover_positional
from mechscope.circuits.registry import discovery, methods
from mechscope.circuits.scrubbing.hypothesis import EachPosition, Hypothesis
from mechscope.circuits.scrubbing.result import ScrubResult
from mechscope.circuits.scrubbing.scrub import Scrubbing
from mechscope.circuits.size_curve import SizeCurve, size_curve
from mechscope.circuits.statistics.checks import CheckSettings, check_circuit
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.control_result import DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import ControlSettings, control_discovery
from mechscope.circuits.statistics.part_checks import check_parts
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.circuits.statistics.reset_networks import WeightReset, reset_weights
from mechscope.circuits.statistics.significance import TestSettings, test_circuit
from mechscope.circuits.statistics.significance_result import CircuitTest, CircuitTests
from mechscope.circuits.statistics.stress import Stress, stress_circuit
from mechscope.circuits.units import UnitCircuit, choose_units, evaluate_units

__all__ = [
    "AgainstTruth",
    "CausalModel",
    "CheckSettings",
    "Circuit",
    "CircuitChecks",
    "CircuitEvaluation",
    "CircuitTest",
    "CircuitTests",
    "ControlSettings",
    "Conventions",
    "Das",
    "DasResult",
    "DiscoveryControls",
    "EachPosition",
    "Examples",
    "ExpertCircuit",
    "Hypothesis",
    "InterchangeGrid",
    "InterchangeResult",
    "Interchanges",
    "Interchanging",
    "LatentCircuit",
    "Measures",
    "PartEvaluation",
    "PartMeasures",
    "Place",
    "PositionalCircuit",
    "RowSpace",
    "ScrubResult",
    "Scrubbing",
    "SizeCurve",
    "Stability",
    "Stress",
    "TestSettings",
    "UnitCircuit",
    "Variable",
    "WeightReset",
    "acdc_sweep",
    "auroc",
    "check_circuit",
    "check_parts",
    "choose_experts",
    "choose_latents",
    "choose_units",
    "compare_with_truth",
    "control_discovery",
    "discover",
    "discover_positional",
    "discovery",
    "draw_interchanges",
    "evaluate_circuits",
    "evaluate_experts",
    "evaluate_latents",
    "evaluate_units",
    "learn_constants",
    "measure_stability",
    "methods",
    "model_of_program",
    "random_circuits",
    "reset_weights",
    "row_space_of",
    "setting_of",
    "size_curve",
    "stress_circuit",
    "test_circuit",
]
