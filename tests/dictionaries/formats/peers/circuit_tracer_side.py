"""circuit-tracer's side of the interop tests; runs under an interpreter that has it, not under ours.

encode FOLDER X OUT, make KIND FOLDER X OUT: as in sae_lens_side.py; X is [token, layer, d].
read GRAPH OUT: a graph's JSON through its own models.  write TOKENIZER GRAPH OUT: a graph through its own writer.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from circuit_tracer.utils import hf_utils

N_LAYERS, D, EACH = 3, 12, 24


def opened(folder: str) -> torch.nn.Module:
    """As it opens a hub's repository, which lies in a folder here."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    hf_utils.snapshot_download = lambda repo_id, **_: repo_id
    return hf_utils.load_transcoders({**config, "repo_id": folder}, dtype=torch.float32, lazy_decoder=False)


def make(kind: str) -> torch.nn.Module:
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out", "scan": "tiny"}
    more = {"dtype": torch.float32, "device": torch.device("cpu")}
    if kind.startswith("clt"):
        rule = "jump_relu" if kind == "clt_jumprelu" else "relu"
        made = CrossLayerTranscoder(N_LAYERS, EACH, D, rule, lazy_decoder=False, **hooks, **more)
    else:
        gates = [
            torch.nn.functional.relu if kind == "set_relu" else JumpReLU(torch.zeros(EACH), 0.1)
            for _ in range(N_LAYERS)
        ]
        layers = {
            i: SingleLayerTranscoder(D, EACH, gate, i, skip_connection=kind == "set_skip", **more)
            for i, gate in enumerate(gates)
        }
        made = TranscoderSet(layers, **hooks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, one in sorted(made.named_parameters()):
            noise = torch.randn(one.shape, generator=generator) * 0.4
            one.copy_(noise.abs() + 0.1 if "threshold" in name else noise)
    return made


def save(made: torch.nn.Module, folder: str) -> None:
    made.to_safetensors(folder)
    kind = "cross_layer_transcoder" if hasattr(made, "clt_path") else "transcoder_set"
    hooks = {name: getattr(made, name) for name in ("feature_input_hook", "feature_output_hook", "scan")}
    config = {"model_name": "google/gemma-2-2b", "model_kind": kind, **hooks}
    (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))


def encode(coder: torch.nn.Module, given: str, out: str) -> None:
    x = torch.from_numpy(np.load(given)).transpose(0, 1).contiguous()
    with torch.no_grad():
        codes = coder.encode(x)
        written = coder.decode(codes, x)
    flat = codes.transpose(0, 1).flatten(1)
    np.savez(out, codes=flat.numpy(), output=written.transpose(0, 1).numpy())


def read(graph: str, out: str) -> None:
    from circuit_tracer.frontend.graph_models import Model

    found = Model.model_validate_json(Path(graph).read_text())
    Path(out).write_text(found.model_dump_json())


def write(tokenizer: str, graph: str, out: str) -> None:
    """A graph of random numbers; of layer 0 no latent has the number of a layer: its errors' ids are such latents'."""
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph
    from circuit_tracer.utils.create_graph_files import create_graph_files
    from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

    rng = np.random.default_rng(0)
    n_pos = 4
    active = [
        (layer, pos, number) for layer in range(N_LAYERS) for pos in range(1, n_pos) for number in (5, 9, 17)
    ]
    n = len(active) + N_LAYERS * n_pos + n_pos + 2
    table = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.4)
    place = [layer for layer, _, _ in active] + [i for i in range(N_LAYERS) for _ in range(n_pos)]
    place += [-1] * n_pos + [N_LAYERS] * 2
    is_source_only = [False] * len(active) + [True] * (N_LAYERS * n_pos + n_pos) + [False] * 2
    earlier = np.array(place)[None, :] < np.array(place)[:, None]
    table = torch.from_numpy(table * earlier * ~np.array(is_source_only)[:, None]).float()
    sizes = {"n_layers": N_LAYERS, "d_model": D, "d_head": 4, "n_heads": 3, "d_mlp": 48, "d_vocab": 64}
    names = {"tokenizer_name": tokenizer, "model_name": "tiny", "original_architecture": "GPT2LMHeadModel"}
    made = Graph(
        input_string="four tokens",
        input_tokens=torch.tensor([1, 7, 8, 9]),
        active_features=torch.tensor(active),
        adjacency_matrix=table,
        cfg=UnifiedConfig(**sizes, **names),
        selected_features=torch.arange(len(active)),
        activation_values=torch.from_numpy(rng.random(len(active)) + 0.5).float(),
        logit_targets=[LogitTarget("one", 11), LogitTarget("two", 12)],
        logit_probabilities=torch.tensor([0.6, 0.3]),
        scan="tiny",
    )
    create_graph_files(made, "theirs", str(Path(graph).parent), node_threshold=1.0, edge_threshold=1.0)
    (Path(graph).parent / "theirs.json").rename(graph)
    np.savez(out, table=table.numpy(), active=np.array(active), values=made.activation_values.numpy())


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "encode":
        encode(opened(rest[0]), rest[1], rest[2])
    elif what == "make":
        save(make(rest[0]), rest[1])
        encode(opened(rest[1]), rest[2], rest[3])
    else:
        {"read": read, "write": write}[what](*rest)
