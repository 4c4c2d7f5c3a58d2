"""What is compared between the CPU and the pretended device; run as a script it prints a line of JSON for each case.

A process of its own, because a device that is made known to PyTorch stays known.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
FAMILIES = (
    "gpt2",
    "gpt_neox",
    "llama",
    "gemma2",
    "olmo2",
    "mixtral",
    "gpt_oss",
    "falcon_7b",
    "bloom",
    "gpt_neo",
    "bert",
)
METHODS = ("acdc", "eap", "eap-ig", "conditional", "edge-patching", "edge-pruning")
NODE_METHODS = ("attribution", "atp*", "relp", "ig")
ALONE = ("mixed: a sum", "mixed: an index", "mixed: NumPy")
ARCHITECTURES = ("TopK", "BatchTopK", "JumpReLU", "Matryoshka", "Gated", "ReLU")
N_WORDS = 24

Case = Callable[[Any], Any]
"""From a model to numbers, whose order does not depend on where they were computed."""


def cases() -> dict[str, Case]:
    """By name, those of the hand-written specimen and of tiny models."""
    of_specimen: dict[str, Case] = {
        "logits": lambda m: m.logits(_pairs(m).clean),
        "patterns": lambda m: m.run_with_cache(_pairs(m).clean)[1]["pattern", 1],
        "grid of positions": lambda m: _ms().patch_grid(m, _pairs(m), site="resid_pre").values,
        "grid of heads": lambda m: _ms().patch_grid(m, _pairs(m), site="z").values,
        "path patching": lambda m: _ms().path_patch(m, _pairs(m), receivers=["a1.11.k"]).values,
        "logit lens": lambda m: _ms().logit_lens(m, _pairs(m).clean).rank,
        "head scores": lambda m: _ms().head_scores(m, "induction").values,
        "direct attribution": lambda m: (
            _ms().direct_logit_attribution(m, _pairs(m).clean, answers=_pairs(m).answers).heads
        ),
        "generation, steered": _generated,
        "claim": _claimed,
        "optimal ablation": _optimal,
    }
    of_specimen |= {f"nodes, {name}": _nodes(name) for name in NODE_METHODS}
    of_specimen |= {f"circuit, {name}": _found(name) for name in METHODS}
    trained = {f"training, {name}": _trained(name) for name in ARCHITECTURES}
    return of_specimen | _of_tiny() | trained


def _of_tiny() -> dict[str, Case]:
    return {
        "attribution graph": _graph,
        "clamp": _clamped,
        "splicing, error kept": _spliced("keep"),
        "splicing, error dropped": _spliced("drop"),
        "evaluation of a dictionary": _evaluated,
        "latents' shares": _latents,
        "feature index": _index,
    }


def _ms() -> Any:
    import mechscope

    return mechscope


def _pairs(model: Any) -> Any:
    return _ms().behaviors.load("induction", model, n=N_WORDS, seed=0).train.select(range(4))


def _generated(model: Any) -> Any:
    import torch

    ramp = torch.linspace(-1, 1, model.d_model)
    steer = _ms().add("resid_post.0", ramp, absolute=20.0)
    texts = model.generate(_pairs(model).clean, interventions=[steer], max_new_tokens=4)
    return [list(text.encode()[:40].ljust(40)) for text in texts]


def _claimed(model: Any) -> Any:
    ms = _ms()
    behavior = ms.behaviors.load("induction", model, n=N_WORDS, seed=0)
    claim = ms.Claim(
        "The induction head carries it",
        behavior=behavior,
        mechanism=ms.Components(heads=((1, 11),)),
        predictions=[ms.lowers(0.5, unit="gap"), ms.recovers(0.5)],
        controls="other components, same layers",
    )
    return [prediction.effect.value for prediction in claim.examine(model).verdict.predictions]


def _optimal(model: Any) -> Any:
    ms = _ms()
    pairs = _pairs(model)
    written = ms.ablate("z.1", "optimal", reference=pairs.clean)
    (learnt,) = ms.learn_optimal(model, [written], metric=pairs.metric)
    return model.run(pairs.clean, interventions=[learnt]).logits


def _nodes(method: str) -> Case:
    return lambda model: _ms().attribute(model, _pairs(model), method=method).scores


def _found(method: str) -> Case:
    def found(model: Any) -> Any:
        ms, pairs = _ms(), _pairs(model)
        circuit = ms.circuits.discover(model, pairs, method=method, n_edges=6)
        (evaluation,) = ms.evaluate_circuits(model, [circuit], pairs)
        return [len(circuit.edges), evaluation.faithfulness]

    return found


def _text() -> list[list[int]]:
    import torch

    from tiny_models import VOCABULARY

    return torch.randint(0, VOCABULARY, (24, 9), generator=torch.Generator().manual_seed(3)).tolist()


def _trained(name: str) -> Case:
    def trained(model: Any) -> Any:
        dictionaries = _ms().dictionaries
        settings = dictionaries.Training(batch=64, n_tokens=64 * 8, rate=5e-3)
        kinds = {"TopK": {"k": 6}, "BatchTopK": {"k": 6}, "Matryoshka": {"k": 6}}
        config = getattr(dictionaries, name)(width=64, **kinds.get(name, {}))
        found = dictionaries.train(model, site="resid_post.1", text=_text(), config=config, training=settings)
        evaluation = dictionaries.evaluate(found, model, _text())
        return [*found.tensors["W_dec"].flatten().tolist(), evaluation["fvu"].value]

    return trained


def _sae(model: Any) -> Any:
    """Random, and on the CPU, as dictionaries are opened."""
    from mechscope.graphs.replacement import random_transcoders

    return random_transcoders(model, 40, k=6, kind="sae")[1]


def _clamped(model: Any) -> Any:
    import torch

    return model.logits(
        torch.tensor(_text()[:3]), interventions=[_ms().clamp(_sae(model), feature=3, to=2.0)]
    )


def _latents(model: Any) -> Any:
    from mechscope.interventions.metrics import LogitDifference, answer_sets

    clean, corrupt = (model.tokens(rows) for rows in (_text()[:3], _text()[3:6]))
    metric = LogitDifference(answers=answer_sets([1, 2, 3]), wrong=answer_sets([4, 5, 6]))
    pairs = SimpleNamespace(clean=clean, corrupt=corrupt, metric=metric)
    return next(iter(_ms().attribute_latents(model, pairs, dictionaries=[_sae(model)]).effects.values()))


def _spliced(error: str) -> Case:
    import torch

    return lambda model: model.run(torch.tensor(_text()[:3]), splice=[(_sae(model), error)]).logits


def _evaluated(model: Any) -> Any:
    evaluation = _ms().dictionaries.evaluate(_sae(model), model, _text())
    return [evaluation[name].value for name in ("l0", "fvu", "kl_replaced")]


def _graph(model: Any) -> Any:
    from mechscope.graphs.replacement import random_transcoders

    transcoders = random_transcoders(model, 40, k=6)
    graph = _ms().attribution_graph(model, transcoders, _text()[:1])
    return graph.adjacency.to_dense()


def _index(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        index = _ms().features.build(model, _sae(model), _text(), folder=folder)
        return index.statistics.fires


def _numbers(found: Any) -> Any:
    import torch

    values = found.values if hasattr(found, "coords") else found
    return torch.as_tensor(values).detach().cpu().double()


def run() -> None:
    """Every case on both devices."""
    sys.path[:0] = [str(TESTS), str(TESTS / "devices")]
    import torch
    from pretended import moved, pretended_device

    from tiny_models import tiny

    ms, ones = _ms(), torch.ones(3)
    known = cases()
    here: dict[str, Any] = {}
    for name, case in known.items():
        here[name] = _numbers(case(_model_for(name)))
    with pretended_device():
        for family in FAMILIES:
            _tell(f"self-check, {family}", lambda family=family: 0.0 * ms.wrap(moved(tiny(family))).n_layers)
        for name, case in known.items():
            _tell(
                name, lambda name=name, case=case: _far(_numbers(case(_model_for(name, moved))), here[name])
            )
        there = ones.to("elsewhere")
        for name, mixed in zip(
            ALONE,
            (lambda: there + ones, lambda: ones[torch.tensor([0]).to("elsewhere")], lambda: there.numpy()),
            strict=True,
        ):
            _tell(name, lambda mixed=mixed: 0.0 * len(mixed()))
    sys.stdout.flush()
    os._exit(0)  # threads of the pretended device's backward passes are not known to PyTorch's end


def _model_for(name: str, moved: Callable[[Any], Any] = lambda module: module) -> Any:
    ms = _ms()
    if name in _of_tiny() or name.startswith("training"):
        from tiny_models import tiny

        return ms.wrap(moved(tiny("llama")))
    model = ms.load("induction")
    return ms.wrap(moved(model.hf), model.tokenizer)


def _far(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max() / max(float(wanted.abs().max()), 1e-9))


def _tell(name: str, case: Callable[[], float]) -> None:
    try:
        told: dict[str, Any] = {"name": name, "difference": case(), "error": ""}
    except Exception:  # a case that fails is told, and the others are run
        told = {"name": name, "difference": None, "error": traceback.format_exc(limit=-14)}
    print(json.dumps(told), flush=True)  # noqa: T201 - the script's output


if __name__ == "__main__":
    run()
