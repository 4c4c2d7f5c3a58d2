"""Statistics of circuits: would other prompts give the same one, and does a circuit beat chance?"""

from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.circuits.statistics.significance import (
    CircuitTest,
    CircuitTests,
    TestSettings,
    test_circuit,
)
from mechscope.circuits.statistics.stress import Stress, stress_circuit

__all__ = [
    "CircuitTest",
    "CircuitTests",
    "Stability",
    "Stress",
    "TestSettings",
    "measure_stability",
    "random_circuits",
    "stress_circuit",
    "test_circuit",
]
