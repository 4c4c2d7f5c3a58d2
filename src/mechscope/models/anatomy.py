"""Anatomy: where a family keeps its points, as data. Adapters write one; the binding reads it.

A `Part` says which module takes or returns a point's tensor, and in which layout. An adapter is a function
from a configuration to an `Anatomy`; it contains no forward pass and touches no weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mechscope.models.layouts import Layout, Plain
from mechscope.vocabulary.errors import RegistrationError

Side = Literal["output", "input"]


@dataclass(frozen=True)
class Part:
    """Where a point's tensor passes.

    Args:
        module: Path below the layer (layer points) or below the whole model (start and end points).
        side: The module's output (its first element if it returns a tuple) or its first input.
        layout: How the raw tensor holds the value.
        index: Which element of a tuple output.
        is_flat: The module sees [batch * pos, ...] (mixtures of experts).
    """

    module: str
    side: Side = "output"
    layout: Layout = field(default_factory=Plain)
    index: int = 0
    is_flat: bool = False


@dataclass(frozen=True)
class Norm:
    """A norm's kind and epsilon; `weight_offset` is 1.0 where the checkpoint stores weight minus one.

    Args:
        module: Path, as in `Part`.
        kind: "rms" divides by the root mean square, "layer" subtracts the mean first.
        is_on_stream: Stands on the skip connection: what it returns is the residual stream itself (BERT).
    """

    module: str
    kind: Literal["rms", "layer"]
    eps: float
    weight_offset: float = 0.0
    is_on_stream: bool = False


@dataclass(frozen=True, kw_only=True)
class InnerMethod:
    """A method (query, key, value, mask) -> (z, pattern) that computes attention; ours stands in while somebody looks.

    Args:
        name: Attribute of the attention module.
        scale: Factor on the scores.
        window: Buffer [1, 1, context, context] that says what is visible, if the module keeps one.
        is_wide: Scores are computed in float32 whatever the activations' dtype.
    """

    name: str
    scale: float = 1.0
    window: str | None = None
    is_wide: bool = True


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the attention function needs to know about a family.

    Args:
        module: Path of the attention module below the layer.
        n_heads: Query heads.
        n_kv_heads: Key/value heads.
        d_head: Width of a head.
        output: Path of the output projection below the layer.
        is_rotary: Positions enter by rotating queries and keys.
        has_interface: The family calls the registered attention function; where it does not, q, k, scores,
            pattern and z are not formed in reach.
        has_sinks: Softmax has an extra entry without a value.
        inner: The attention module's inner method, where a family has one instead of the interface.
        is_softmax_native: Softmax in the activations' own dtype after subtracting the maximum (gpt_oss),
            instead of in float32.
    """

    module: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    output: str
    is_rotary: bool = True
    has_interface: bool = True
    has_sinks: bool = False
    inner: InnerMethod | None = None
    is_softmax_native: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How a mixture routes: which experts a token gets from the router's logits, and with what weights.

    Args:
        router: Path below the layer of the module that returns (logits, weights, choice).
        module: Path of the experts module, which calls the library's experts interface.
        n_experts: Experts of a layer.
        n_chosen: Experts a token.
        is_softmax_first: Softmax over all experts, then the choice (Mixtral, Qwen); otherwise the choice, then
            softmax over the chosen (gpt-oss).
        is_renormalised: Weights of the chosen are divided by their sum; only with `is_softmax_first`.
        has_narrow_weights: Weights are cast back to the activations' dtype.
    """

    router: str
    module: str
    n_experts: int
    n_chosen: int
    is_softmax_first: bool
    is_renormalised: bool = False
    has_narrow_weights: bool = True


@dataclass(frozen=True, kw_only=True)
class Head:
    """The way from the residual stream to logits: final norm, product, then scale, then soft-cap.

    Args:
        module: Path of the unembedding.
        scale: Factor on the logits.
        softcap: c in c * tanh(logits / c); None for none.
        transform: Path of a module that stands between the stream and the unembedding and ends in the final norm, where
            a norm is not all that stands there (the masked-language head of BERT).
        predicts: Logits at a position are about the "next" token, or about the position's "own".
    """

    module: str = "lm_head"
    scale: float = 1.0
    softcap: float | None = None
    transform: str | None = None
    predicts: Literal["next", "own"] = "next"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Everything the binding needs about a family.

    Args:
        family: Name of the adapter.
        layers: Path of the list of layers.
        parts: Layer points, by name. "v_proj" is the value projection (for weights).
        ends: "embed", "pos_embed" and "ln_final", by name; paths below the whole model.
        norms: Norms by the point they form: "ln1", "ln2", "ln_final"; those that stand on the stream form
            "resid_mid" and "resid_post".
        attention: None for a family without attention.
        head: The unembedding.
        experts: Routing of a mixture of experts; its layers are those whose parts have "expert_out".
        is_parallel: Attention and MLP read the same residual stream, so `resid_mid` is not formed.
        is_causal: Later tokens cannot change earlier outputs.
        layer_parts: Parts of single layers that differ from `parts` (dense layers of a mixture).
        why_missing: Reasons for points that are refused, by name; shown in the refusal.
    """

    family: str
    layers: str
    parts: Mapping[str, Part]
    ends: Mapping[str, Part]
    norms: Mapping[str, Norm]
    attention: Attention
    head: Head = field(default_factory=Head)
    experts: Experts | None = None
    is_parallel: bool = False
    is_causal: bool = True
    layer_parts: Mapping[int, Mapping[str, Part]] = field(default_factory=dict)
    why_missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stream_normed(self) -> bool:
        """Norms stand on the residual stream, so that it is no sum of what was added to it."""
        return any(norm.is_on_stream for norm in self.norms.values())


Describe = Callable[[Any], Anatomy]
_FAMILIES: dict[str, Describe] = {}


def family(*model_types: str) -> Callable[[Describe], Describe]:
    """Register an adapter for the `model_type`s of its configurations.

    Raises:
        RegistrationError: a model type is already taken.
    """

    def register(describe: Describe) -> Describe:
        for model_type in model_types:
            if model_type in _FAMILIES:
                raise RegistrationError(
                    f'Two adapters claim the model type "{model_type}".',
                    got=f"{describe.__module__}, {_FAMILIES[model_type].__module__}",
                    instead="one adapter file a family",
                )
            _FAMILIES[model_type] = describe
        return describe

    return register


def registered_families() -> dict[str, Describe]:
    """Adapters by model type, after loading the built-in ones."""
    from mechscope.models.adapters import load_adapters

    load_adapters()
    return dict(_FAMILIES)
