"""Statistics of circuits: would other prompts give the same one, and does a circuit beat chance?"""

from mechscope.circuits.statistics.checks import CheckSettings, check_circuit
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.control_result import Discovery, DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import ControlSettings, control_discovery
from mechscope.circuits.statistics.part_checks import check_parts
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.circuits.statistics.reset_networks import WeightReset, reset_weights
from mechscope.circuits.statistics.significance import TestSettings, test_circuit
from mechscope.circuits.statistics.significance_result import CircuitTest, CircuitTests
from mechscope.circuits.statistics.stress import Stress, stress_circuit

__all__ = [
    "CheckSettings",
    "CircuitChecks",
    "CircuitTest",
    "CircuitTests",
    "ControlSettings",
    "Discovery",
    "DiscoveryControls",
    "Stability",
    "Stress",
    "TestSettings",
    "WeightReset",
    "check_circuit",
    "check_parts",
    "control_discovery",
    "measure_stability",
    "random_circuits",
    "reset_weights",
    "stress_circuit",
    "test_circuit",
]
