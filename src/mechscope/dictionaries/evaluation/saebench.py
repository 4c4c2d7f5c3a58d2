"""SAEBench's JSON: the figures of an evaluation under the names of its core evaluation.

Their `explained_variance` is ours (pooled); the older per-token form that they also published is not written.
Intervals go to `eval_result_unstructured`, which their readers leave alone.
"""

import time
import uuid
from typing import TYPE_CHECKING, Any

from mechscope.vocabulary.foreign_names import HOOK_KEY

if TYPE_CHECKING:
    from mechscope.dictionaries.evaluation.result import Evaluation

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
    figures, source = evaluation.figures, evaluation.dictionary.get("source", {})
    metrics: dict[str, dict[str, Any]] = {
        category: {theirs: figures[ours].value for theirs, ours in names.items() if ours in figures}
        for category, names in _CATEGORIES.items()
    }
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": evaluation.n_tokens,
        "total_tokens_eval_sparsity_variance": evaluation.n_tokens,
    }
    name = f"{evaluation.data_sha256}{sorted((key, one.value) for key, one in figures.items())}"
    return {
        "eval_type_id": "core",
        "eval_config": dict(evaluation.settings),
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": {category: values for category, values in metrics.items() if values},
        "eval_result_details": [
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
        "eval_result_unstructured": {
            "intervals_95": {
                key: [one.low, one.high] for key, one in figures.items() if abs(one.low) < float("inf")
            }
        },
        "sae_bench_commit_hash": "",
        "sae_lens_id": "",
        "sae_lens_release_id": "",
        "sae_lens_version": "",
        "sae_cfg_dict": {
            "model_name": source.get("model", ""),
            "d_in": sum(_width(port) for port in evaluation.dictionary.get("reads", ())),
            "d_sae": evaluation.dictionary.get("n_latents"),
            HOOK_KEY: ", ".join(port["site"] for port in evaluation.dictionary.get("reads", ())),
            "architecture": evaluation.dictionary.get("gate", {}).get("rule"),
        },
    }


def _width(port: dict[str, Any]) -> int:
    width = 1
    for size in port["shape"]:
        width *= size
    return width
