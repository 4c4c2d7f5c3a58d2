"""SAEBench's JSON: our figures under the names of its core, absorption and sparse probing evaluations.

Their `explained_variance` is ours (pooled); the older per-token form that they also published is not written. Their
prompts and data sets are not ours: the names say what a number is, the text that it is of is the caller's. Intervals
go to `eval_result_unstructured`, which their readers leave alone.
"""

import statistics
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechscope.dictionaries.evaluation.absorption import CANDIDATES, AbsorptionSettings
from mechscope.records.canonical import hash_json
from mechscope.vocabulary.errors import NotEnoughEvidence
from mechscope.vocabulary.foreign_names import HOOK_KEY

if TYPE_CHECKING:
    from mechscope.dictionaries.dictionary import Dictionary
    from mechscope.dictionaries.evaluation.absorption import Absorption
    from mechscope.dictionaries.evaluation.estimates import Estimate
    from mechscope.dictionaries.evaluation.probing import Probing
    from mechscope.dictionaries.evaluation.result import Evaluation

SAEBENCH_K = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of latents for which their class has a field."""

_CATEGORIES: dict[str, dict[str, str]] = {
    "model_behavior_preservation": {
        "kl_div_score": "kl_recovered",
        "kl_div_with_ablation": "kl_ablated",
        "kl_div_with_sae": "kl_replaced",
    },
    "model_performance_preservation": {
        "ce_loss_score": "ce_recovered",
        "ce_loss_with_ablation": "ce_ablated",
        "ce_loss_with_sae": "ce_replaced",
        "ce_loss_without_sae": "ce",
    },
    "reconstruction_quality": {"explained_variance": "r2", "mse": "mse", "cossim": "cosine"},
    "shrinkage": {
        "l2_norm_in": "norm_in",
        "l2_norm_out": "norm_out",
        "l2_ratio": "norm_ratio",
        "relative_reconstruction_bias": "shrinkage",
    },
    "sparsity": {"l0": "l0", "l1": "l1"},
    "misc_metrics": {"freq_over_1_percent": "dense_1_percent", "freq_over_10_percent": "dense_10_percent"},
}

_OF_A_LATENT = {
    "consistent_activation_heuristic": "tokens_per_prompt",
    "encoder_bias": "encoder_bias",
    "encoder_norm": "encoder_norm",
    "encoder_decoder_cosine_sim": "encoder_decoder_cosine",
}


def to_saebench(evaluation: "Evaluation") -> dict[str, Any]:
    """An evaluation as SAEBench writes its results.

    Their class for it wants every figure and every number of a latent; it opens what was measured with `losses`, of an
    SAE. A transcoder's encoder and decoder have no cosine, and none is invented.
    """
    figures = evaluation.figures
    metrics: dict[str, dict[str, Any]] = {
        category: {theirs: figures[ours].value for theirs, ours in names.items() if ours in figures}
        for category, names in _CATEGORIES.items()
    }
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": evaluation.n_tokens,
        "total_tokens_eval_sparsity_variance": evaluation.n_tokens,
    }
    return _envelope(
        "core",
        config=dict(evaluation.settings),
        metrics={category: values for category, values in metrics.items() if values},
        details=[
            {
                "index": index,
                "feature_density": float(density),
                **{
                    theirs: float(evaluation.latents[ours][index])
                    for theirs, ours in _OF_A_LATENT.items()
                    if ours in evaluation.latents
                },
            }
            for index, density in enumerate(evaluation.density)
        ],
        unstructured={"intervals_95": _intervals(figures)},
        dictionary=evaluation.dictionary,
    )


def absorption_to_saebench(
    found: Mapping[str, "Absorption"],
    dictionary: "Dictionary",
    *,
    settings: AbsorptionSettings | None = None,
) -> dict[str, Any]:
    """Absorption of first letters as SAEBench writes it, with every field that its classes require.

    Args:
        found: By letter, from `first_letter_absorption`.
        dictionary: The SAE that it is of.
        settings: What it was measured with.

    Raises:
        NotEnoughEvidence: fewer than two letters, or a concept that is no letter.

    Caveat: theirs asks for the first letter in a prompt with examples; ours reads the tokens of a text.
    """
    letters = {letter: one for letter, one in found.items() if len(letter) == 1 and letter.isalpha()}
    if len(letters) < 2 or len(letters) < len(found):
        raise NotEnoughEvidence(
            "SAEBench's absorption is of first letters, with a spread over them.",
            got=", ".join(found) or "no letter",
            because="its fields are a mean and a standard deviation over letters",
            instead="first_letter_absorption(...) on a text with at least two frequent letters",
        )
    chosen = settings or AbsorptionSettings()
    columns = {
        "absorption_fraction_score": [one.fraction.value for one in letters.values()],
        "full_absorption_score": [one.absorbed.value for one in letters.values()],
        "num_split_features": [float(len(one.main)) for one in letters.values()],
    }
    return _envelope(
        "absorption_first_letter",
        config={
            "model_name": dictionary.settings.source.model,
            "random_seed": chosen.seed,
            "f1_jump_threshold": chosen.least_gain,
            "max_k_value": CANDIDATES,
            "llm_batch_size": chosen.batch_size,
        },
        metrics={
            "mean": {
                **{f"mean_{name}": statistics.mean(values) for name, values in columns.items()},
                **{f"std_dev_{name}": statistics.stdev(values) for name, values in columns.items()},
            }
        },
        details=[
            {
                "first_letter": letter,
                "mean_absorption_fraction": one.fraction.value,
                "full_absorption_rate": one.absorbed.value,
                "num_full_absorption": sum(one.absorbers.values()),
                "num_probe_true_positives": one.n_tokens,
                "num_split_features": len(one.main),
            }
            for letter, one in letters.items()
        ],
        unstructured={
            "intervals_95": {
                **_intervals({f"{letter}: absorbed": one.absorbed for letter, one in letters.items()}),
                **_intervals({f"{letter}: fraction": one.fraction for letter, one in letters.items()}),
            },
            "bos": sorted({str(one.bos) for one in letters.values()}),
        },
        dictionary=dictionary.settings.to_json(),
    )


def probing_to_saebench(
    found: Mapping[str, "Probing"], dictionary: "Dictionary", *, seed: int = 0
) -> dict[str, Any]:
    """k-sparse probes as SAEBench writes them, with every field that its classes require.

    Accuracies of its k (1, 2, 5, 10, 20, 50, 100) that were asked for are written; probes on single channels of the
    model and on all latents at once, F1 and Wasserstein distances, all optional there, are not.

    Args:
        found: By name of the concept or data set, from `sparse_probing(..., values=...)`.
        dictionary: What it is of.
        seed: Of the probes.

    Raises:
        NotEnoughEvidence: no concept, or one that was not probed in the activations.

    Caveat: their classes are balanced, ours as they come; `share_with` beside the intervals says how.
    """
    if not found or any(one.dense_accuracy is None for one in found.values()):
        raise NotEnoughEvidence(
            "SAEBench's sparse probing needs the probe on the activations beside those on latents.",
            got=", ".join(name for name, one in found.items() if one.dense_accuracy is None) or "no concept",
            because="its field llm_test_accuracy is required",
            instead="sparse_probing(codes, labels, values=...)",
        )
    details = [
        {
            "dataset_name": name,
            "llm_test_accuracy": one.dense_accuracy.value if one.dense_accuracy else None,
            **{
                f"sae_top_{k}_test_accuracy": accuracy.value
                for k, accuracy in one.accuracy.items()
                if k in SAEBENCH_K
            },
        }
        for name, one in found.items()
    ]
    shared = [key for key in details[0] if key != "dataset_name" and all(key in one for one in details)]
    means = {key: statistics.mean(one[key] for one in details) for key in shared}
    intervals = {
        f"{name}: k = {k}": accuracy for name, one in found.items() for k, accuracy in one.accuracy.items()
    }
    return _envelope(
        "sparse_probing",
        config={
            "model_name": dictionary.settings.source.model,
            "random_seed": seed,
            "dataset_names": list(found),
            "k_values": [k for k in SAEBENCH_K if f"sae_top_{k}_test_accuracy" in means],
        },
        metrics={
            kind: {key: value for key, value in means.items() if key.startswith(kind)}
            for kind in ("llm", "sae")
        },
        details=details,
        unstructured={
            "intervals_95": _intervals(intervals),
            "auroc": {
                name: {str(k): auroc.value for k, auroc in one.auroc.items()} for name, one in found.items()
            },
            "share_with": {name: one.share_with for name, one in found.items()},
        },
        dictionary=dictionary.settings.to_json(),
    )


def _envelope(
    kind: str,
    *,
    config: dict[str, Any],
    metrics: dict[str, Any],
    details: list[dict[str, Any]],
    unstructured: dict[str, Any],
    dictionary: Mapping[str, Any],
) -> dict[str, Any]:
    """What all of SAEBench's results have in common; equal numbers give equal ids."""
    told = hash_json({"kind": kind, "config": config, "metrics": metrics, "details": details})
    return {
        "eval_type_id": kind,
        "eval_config": config,
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, told)),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "eval_result_unstructured": unstructured,
        "sae_bench_commit_hash": "",
        "sae_lens_id": "",
        "sae_lens_release_id": "",
        "sae_lens_version": "",
        "sae_cfg_dict": {
            "model_name": dictionary.get("source", {}).get("model", ""),
            "d_in": sum(_width(port) for port in dictionary.get("reads", ())),
            "d_sae": dictionary.get("n_latents"),
            HOOK_KEY: ", ".join(port["site"] for port in dictionary.get("reads", ())),
            "architecture": dictionary.get("gate", {}).get("rule"),
        },
    }


def _intervals(figures: Mapping[str, "Estimate"]) -> dict[str, list[float]]:
    return {key: [one.low, one.high] for key, one in figures.items() if abs(one.low) < float("inf")}


def _width(port: dict[str, Any]) -> int:
    width = 1
    for size in port["shape"]:
        width *= size
    return width
