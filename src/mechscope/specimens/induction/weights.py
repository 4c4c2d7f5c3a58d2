"""The specimen's weights, written down.

Owns: the subspaces of the residual stream, the codes of tokens and positions, and one small matrix
    builder for each way of looking and of writing named in `heads.py`.
Invariant: no training, no platform-dependent randomness (signs come from Python's own generator), and
    every value is exact in bfloat16, so a rebuild has the same bytes.

The residual stream is four codes of 32 side by side, and flags:
    token 0-31 | position 32-63 | previous 64-95 | copied 96-127 | always 128 | is_first 129 | unused 130-131
"""

import math
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.specimens.induction.heads import HEADS, Plan
from mechscope.specimens.induction.language import BOS, FIRST_WORD, N_CTX, WORDS

D_CODE, D_MODEL, D_HEAD = 32, 132, 36
SUBSPACES = {
    "token": slice(0, 32),
    "position": slice(32, 64),
    "previous": slice(64, 96),
    "copied": slice(96, 128),
}
ALWAYS, IS_FIRST = 128, 129
REST = 32  # the head dimension in which "always" meets "is_first"

# Scores at a match, in nats above a mismatch of overlap 0. Sharp enough for a pattern of 0.99,
# soft enough that gradients through it do not vanish.
MATCH_POSITION, MATCH_TOKEN, MATCH_FIRST, REST_SCORE = 12.0, 16.0, 8.0, 11.0
LOGIT_GAIN = 12.0
NOISE_LOOK, NOISE_WRITE = 2.0**-2, 2.0**-5

# Frequencies in turns per 131 positions. Two positions of the context overlap by at most 0.18 with these.
PERIOD = 131
FREQUENCIES = (1, 7, 11, 12, 19, 22, 24, 25, 27, 28, 32, 41, 45, 47, 55, 61)


def make_model() -> NativeForCausalLM:
    """Build the specimen, in float32 and eval mode. Deterministic."""
    n_tokens = FIRST_WORD + len(WORDS)
    config = NativeConfig(
        n_layers=2,
        d_model=D_MODEL,
        n_heads=len(HEADS[0]),
        d_head=D_HEAD,
        d_mlp=0,
        d_vocab=n_tokens,
        n_ctx=N_CTX,
        norm="none",
        positions="learned",
        attn_scale=1.0,
        bias=False,
        pad_token_id=0,
        bos_token_id=BOS,
    )
    model = NativeForCausalLM(config)
    weights = {"model.embed.weight": embed_tokens(), "model.pos_embed.weight": embed_positions()}
    for layer, plans in enumerate(HEADS):
        heads = [write_head(plan, name=f"{layer}.{index}") for index, plan in enumerate(plans)]
        for letter in "qkv":
            weights[f"model.layers.{layer}.attn.{letter}_proj.weight"] = torch.cat(
                [head[letter] for head in heads]
            )
        weights[f"model.layers.{layer}.attn.o_proj.weight"] = torch.cat([head["o"] for head in heads], dim=1)
    weights["unembed.weight"] = read_copied()
    model.load_state_dict({name: value.bfloat16().float() for name, value in weights.items()})
    return model.eval()


def token_codes() -> Float[Tensor, "word d_code"]:
    """One unit vector a word: 32 axes, then 32 Hadamard rows. Two words overlap by 0 or 1/sqrt(32)."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < D_CODE:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    return torch.cat([torch.eye(D_CODE), hadamard / math.sqrt(D_CODE)])


def position_codes() -> Float[Tensor, "pos d_code"]:
    """Sixteen points on circles: cosines, then sines. A step is a rotation; a code has norm 1."""
    angles = torch.arange(N_CTX, dtype=torch.float64)[:, None] * _turns()
    return (torch.cat([angles.cos(), angles.sin()], dim=1) / 4).float()


def embed_tokens() -> Float[Tensor, "d_vocab d_model"]:
    """Words are their codes; padding is nothing; the first token is only a flag."""
    weight = torch.zeros(FIRST_WORD + len(WORDS), D_MODEL)
    weight[FIRST_WORD:, SUBSPACES["token"]] = token_codes()
    weight[BOS, IS_FIRST] = 1.0
    return weight


def embed_positions() -> Float[Tensor, "pos d_model"]:
    """Positions are their codes, and a flag that is always 1."""
    weight = torch.zeros(N_CTX, D_MODEL)
    weight[:, SUBSPACES["position"]] = position_codes()
    weight[:, ALWAYS] = 1.0
    return weight


def read_copied() -> Float[Tensor, "d_vocab d_model"]:
    """Logits are overlaps with the copied token; padding and the first token always get 0."""
    weight = torch.zeros(FIRST_WORD + len(WORDS), D_MODEL)
    weight[FIRST_WORD:, SUBSPACES["copied"]] = LOGIT_GAIN * token_codes()
    return weight


def write_head(plan: Plan, *, name: str) -> dict[str, Tensor]:
    """The four matrices of a head; q, k, v are [d_head, d_model] and o is [d_model, d_head]."""
    q, k = _write_looking(plan, name=name)
    v, o = _write_writing(plan, name=name)
    return {"q": q, "k": k, "v": v, "o": o}


def _write_looking(plan: Plan, *, name: str) -> tuple[Tensor, Tensor]:
    q, k = torch.zeros(D_HEAD, D_MODEL), torch.zeros(D_HEAD, D_MODEL)
    code = slice(0, D_CODE)
    token, position, previous = (SUBSPACES[part] for part in ("token", "position", "previous"))
    match plan.looks:
        case "back":
            q[code, position] = MATCH_POSITION * _step_back(plan.steps)
            k[code, position] = torch.eye(D_CODE)
        case "at_first":
            q[REST, ALWAYS], k[REST, IS_FIRST] = MATCH_FIRST, 1.0
        case "at_same_token":
            q[code, token] = MATCH_TOKEN * torch.eye(D_CODE)
            k[code, token] = torch.eye(D_CODE)
        case "after_same_token":
            q[code, token] = MATCH_TOKEN * torch.eye(D_CODE)
            k[code, previous] = torch.eye(D_CODE)
            q[REST, ALWAYS], k[REST, IS_FIRST] = REST_SCORE, 1.0
        case "anywhere":
            q, k = (NOISE_LOOK * _signs(D_HEAD, D_MODEL, f"{name} {part}") for part in "qk")
    return q, k


def _write_writing(plan: Plan, *, name: str) -> tuple[Tensor, Tensor]:
    if plan.writes == "noise":
        v = NOISE_WRITE * _signs(D_HEAD, D_MODEL, f"{name} v")
        return v, NOISE_WRITE * _signs(D_MODEL, D_HEAD, f"{name} o")
    source, target = plan.writes.split("->")
    v, o = torch.zeros(D_HEAD, D_MODEL), torch.zeros(D_MODEL, D_HEAD)
    v[:D_CODE, SUBSPACES[source]] = torch.eye(D_CODE)
    o[SUBSPACES[target], :D_CODE] = plan.gain * torch.eye(D_CODE)
    return v, o


def _turns() -> Tensor:
    return 2 * math.pi * torch.tensor(FREQUENCIES, dtype=torch.float64) / PERIOD


def _step_back(steps: int) -> Float[Tensor, "d_code d_code"]:
    """The rotation that turns a position's code into the code of `steps` positions earlier."""
    cos, sin = (steps * _turns()).cos().diag(), (steps * _turns()).sin().diag()
    return torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)]).float()


def _signs(n_rows: int, n_columns: int, name: str) -> Tensor:
    bits = Random(f"mechscope induction {name}").getrandbits(n_rows * n_columns)
    values = [2 * (bits >> index & 1) - 1 for index in range(n_rows * n_columns)]
    return torch.tensor(values, dtype=torch.float32).reshape(n_rows, n_columns)
