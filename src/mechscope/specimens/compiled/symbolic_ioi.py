"""The symbolic indirect-object model: one layer, two heads that do the task together, written down.

    [BOS] mary john john gave  ->  mary

The *adding* head reads both names once and adds them; the *contrasting* head reads the second mention and takes it
away, so that only the indirect object is left. Trained models of this size come to the same (arXiv 2510.25013).
Owns: the words, the weights with two distractor heads, the pairs. Names of different splits do not meet.
"""

from collections.abc import Sequence
from random import Random

import torch

from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.specimens.compiled.distractors import signs
from mechscope.specimens.compiled.pairs import SHARES, ProgramPair
from mechscope.specimens.compiled.record import Truth
from mechscope.specimens.compiled.tokenizer import BOS, Vocabulary
from mechscope.specimens.compiled.truth import case_of, find_needed
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import BadPairs

NAMES = tuple(
    """
    mary john alice peter laura simon emma david julia martin sarah robert
    anna paul clara henry rosa felix nora oscar ida hugo vera leon
    eva max lena karl mina otto lucy ralph hanna bruno greta ernest
    """.split()
)
N_PER_SPLIT = len(NAMES) // 3
VERB = "gave"
LENGTH, N_NAMES = 5, len(NAMES)
ADDING, CONTRASTING = 1, 3
N_HEADS, D_HEAD, N_JUNK, GAIN, SHARP = 4, N_NAMES, 8, 20.0, 24.0
VOCABULARY = Vocabulary(("[PAD]", "[BOS]", *NAMES, VERB), tuple(range(2, 2 + N_NAMES)))
WIRING = Wiring(n_layers=1, n_heads=N_HEADS, n_kv_heads=N_HEADS, has_mlps=False)

# The residual stream: the name, the position, the answer so far, and what only distractors write.
TOKEN, POSITION = slice(0, N_NAMES), slice(N_NAMES, N_NAMES + LENGTH)
OUT = slice(POSITION.stop, POSITION.stop + N_NAMES)
JUNK = slice(OUT.stop, OUT.stop + N_JUNK)


def make_symbolic_ioi() -> NativeForCausalLM:
    """Build the model, in float32 and eval mode. Deterministic."""
    d_model = JUNK.stop
    config = NativeConfig(
        n_layers=1,
        d_model=d_model,
        n_heads=N_HEADS,
        d_head=D_HEAD,
        d_mlp=0,
        d_vocab=len(VOCABULARY.words),
        n_ctx=LENGTH,
        norm="none",
        positions="learned",
        attn_scale=1.0,
        bias=False,
        pad_token_id=0,
        bos_token_id=BOS,
    )
    embed, unembed = (torch.zeros(len(VOCABULARY.words), d_model) for _ in range(2))
    names = list(VOCABULARY.answers)
    embed[names, TOKEN] = torch.eye(N_NAMES)
    unembed[names, OUT] = GAIN * torch.eye(N_NAMES)
    position = torch.zeros(LENGTH, d_model)
    position[:, POSITION] = torch.eye(LENGTH)
    q, k, v = (torch.zeros(N_HEADS, D_HEAD, d_model) for _ in range(3))
    o = torch.zeros(N_HEADS, d_model, D_HEAD)
    for head, places, sign in ((ADDING, (1, 2), 1.0), (CONTRASTING, (3,), -1.0)):
        q[head, 0, POSITION] = SHARP
        for place in places:
            k[head, 0, POSITION.start + place] = 1.0
        v[head, :, TOKEN] = torch.eye(N_NAMES)
        o[head, OUT] = sign * torch.eye(N_NAMES)
    for head, looks_like in ((0, ADDING), (2, CONTRASTING)):
        random = Random(f"mechscope symbolic ioi {head}")
        q[head], k[head] = q[looks_like], k[looks_like]
        v[head] = signs(random, D_HEAD, d_model).float() / 8
        o[head, JUNK] = signs(random, N_JUNK, D_HEAD).float() / 4
    model = NativeForCausalLM(config)
    name = "model.layers.0.attn"
    weights = {"model.embed.weight": embed, "model.pos_embed.weight": position, "unembed.weight": unembed}
    for letter, matrix in zip("qkv", (q, k, v), strict=True):
        weights[f"{name}.{letter}_proj.weight"] = matrix.flatten(0, 1)
    model.load_state_dict(weights | {f"{name}.o_proj.weight": torch.cat(list(o), dim=1)})
    return model.eval()


def draw_ioi_pairs(*, split: str = "train", n: int, seed: int = 0) -> tuple[ProgramPair, ...]:
    """Draw pairs, two templates in turn.

    "repeat": the corrupt prompt repeats the other name, so the answer is the other name (only the contrasting head
    sees it). "name": the corrupt prompt has another indirect object (only the adding head sees it).

    Raises:
        BadPairs: no such split.
    """
    if split not in SHARES:
        raise BadPairs(f'There is no split "{split}".', got=split, instead=", ".join(SHARES))
    random = Random(f"mechscope symbolic ioi {split} {seed}")
    mixed = list(NAMES)
    Random("mechscope symbolic ioi names").shuffle(mixed)
    part = list(SHARES).index(split)
    names = mixed[N_PER_SPLIT * part : N_PER_SPLIT * (part + 1)]
    return tuple(_pair(random, names, is_repeat=index % 2 == 0) for index in range(n))


def _pair(random: Random, names: Sequence[str], *, is_repeat: bool) -> ProgramPair:
    indirect, subject, other = random.sample(names, 3)
    is_first = random.random() < 0.5

    def said(one: str, two: str, repeated: str) -> tuple[str, ...]:
        return (*((one, two) if is_first else (two, one)), repeated, VERB)

    clean = said(indirect, subject, subject)
    corrupt = said(indirect, subject, indirect) if is_repeat else said(other, subject, subject)
    return ProgramPair(
        clean=clean, corrupt=corrupt, outputs=(indirect,), corrupt_outputs=(subject if is_repeat else other,)
    )


def find_ioi_truth(n: int = 64, seed: int = 0) -> Truth:
    """What is true of the model, its needed edges measured on pairs of both templates."""
    network = make_symbolic_ioi()
    heads = {
        name: Node(kind="head", layer=0, head=head)
        for name, head in (("add", ADDING), ("contrast", CONTRASTING))
    }
    embed, logits = Node(kind="embed"), Node(kind="logits")
    case = case_of(draw_ioi_pairs(n=n, seed=seed), VOCABULARY.ids, bos=BOS)
    wired = [
        Edge(source=embed, target=head, input=which) for head in heads.values() for which in ("q", "k", "v")
    ]
    wired += [Edge(source=head, target=logits) for head in heads.values()]
    return Truth(
        name="symbolic_ioi",
        wiring=WIRING,
        roles={
            embed: ("names", "positions"),
            **{head: (name,) for name, head in heads.items()},
            logits: ("output",),
        },
        wired=tuple(sorted(wired, key=str)),
        resample=find_needed(network, case, ablation="resample"),
        zero=find_needed(network, case, ablation="zero"),
        distractors=tuple(
            node for node in WIRING.nodes if node.kind == "head" and node not in heads.values()
        ),
        units={},
    )
