"""Floor 5: sparse autoencoders, transcoders, cross-layer transcoders and crosscoders."""

from mechscope.dictionaries.across import train_across
from mechscope.dictionaries.architectures.base import Architecture, register_architecture
from mechscope.dictionaries.architectures.batch_topk import BatchTopK
from mechscope.dictionaries.architectures.gated import Gated
from mechscope.dictionaries.architectures.groupmax import GroupMax
from mechscope.dictionaries.architectures.jumprelu import JumpReLU
from mechscope.dictionaries.architectures.matching_pursuit import MatchingPursuit
from mechscope.dictionaries.architectures.matryoshka import Matryoshka
from mechscope.dictionaries.architectures.relu import PAnneal, ReLU
from mechscope.dictionaries.architectures.topk import TopK
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.conversion import to_jumprelu
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.absorption import (
    Absorption,
    AbsorptionSettings,
    absorption,
    first_letter_absorption,
)
from mechscope.dictionaries.evaluation.card import Card, card
from mechscope.dictionaries.evaluation.comparing_models import compare_models
from mechscope.dictionaries.evaluation.dark_matter import DarkMatter, DarkMatterSettings, dark_matter
from mechscope.dictionaries.evaluation.estimates import Estimate, over_seeds
from mechscope.dictionaries.evaluation.model_comparison import ModelComparison
from mechscope.dictionaries.evaluation.probing import sparse_probing
from mechscope.dictionaries.evaluation.result import Evaluation
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.dictionaries.evaluation.saebench import absorption_to_saebench, probing_to_saebench
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.dictionaries.evaluation.splitting import feature_tree
from mechscope.dictionaries.evaluation.stability import match_latents, seed_stability
from mechscope.dictionaries.formats import export_dictionary as export
from mechscope.dictionaries.opening import open_dictionary as open
from mechscope.dictionaries.settings import Calibration, Gate, Normalization, Port, Settings, Source
from mechscope.dictionaries.train import job_at, train, train_from, train_many, train_to_folder
from mechscope.dictionaries.training.end_to_end import FineTuning, fine_tune
from mechscope.dictionaries.training.logs import flat_figures, to_tensorboard
from mechscope.dictionaries.training.spec import Job, Revival, Schedule, Training

__all__ = [
    "Absorption",
    "AbsorptionSettings",
    "Architecture",
    "BatchTopK",
    "Calibration",
    "Card",
    "DarkMatter",
    "DarkMatterSettings",
    "Dictionary",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "FineTuning",
    "Gate",
    "Gated",
    "GroupMax",
    "Job",
    "JumpReLU",
    "MatchingPursuit",
    "Matryoshka",
    "ModelComparison",
    "Normalization",
    "PAnneal",
    "Port",
    "ReLU",
    "Revival",
    "Schedule",
    "Settings",
    "Source",
    "SparseCodes",
    "TopK",
    "Training",
    "absorption",
    "absorption_to_saebench",
    "card",
    "compare_models",
    "dark_matter",
    "evaluate",
    "export",
    "feature_tree",
    "fine_tune",
    "first_letter_absorption",
    "flat_figures",
    "job_at",
    "match_latents",
    "open",
    "over_seeds",
    "probing_to_saebench",
    "register_architecture",
    "seed_stability",
    "sparse_probing",
    "to_jumprelu",
    "to_tensorboard",
    "train",
    "train_across",
    "train_from",
    "train_many",
    "train_to_folder",
]
