"""Circuits: which edges of a model carry a behaviour. Found, evaluated against controls, drawn and kept."""

from mechscope.circuits.against_truth import AgainstTruth, auroc, compare_with_truth
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.methods.acdc import acdc_sweep
from mechscope.circuits.optimal import learn_constants
from mechscope.circuits.registry import discovery, methods
from mechscope.circuits.size_curve import SizeCurve, size_curve
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.circuits.statistics.significance import CircuitTest, CircuitTests, TestSettings, test_circuit
from mechscope.circuits.statistics.stress import Stress, stress_circuit

__all__ = [
    "AgainstTruth",
    "Circuit",
    "CircuitEvaluation",
    "CircuitTest",
    "CircuitTests",
    "Conventions",
    "Measures",
    "SizeCurve",
    "Stability",
    "Stress",
    "TestSettings",
    "acdc_sweep",
    "auroc",
    "compare_with_truth",
    "discover",
    "discovery",
    "evaluate_circuits",
    "learn_constants",
    "measure_stability",
    "methods",
    "random_circuits",
    "size_curve",
    "stress_circuit",
    "test_circuit",
]
