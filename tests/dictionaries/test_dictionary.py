"""One object for every kind and gate: laws, an oracle in a few lines of arithmetic, and refusals."""

import math
from dataclasses import replace

import pytest
import torch

from dictionaries.samples import (
    GATES,
    KINDS,
    D,
    F,
    normalized_dictionary,
    random_dictionary,
    random_tensors,
    settings_of,
    values_for,
)
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.opening import open_dictionary
from mechscope.dictionaries.settings import Gate, Normalization, settings_from_json
from mechscope.vocabulary.errors import (
    BadFile,
    ChecksumMismatch,
    DictionaryError,
    DictionaryMismatch,
    FoldingError,
    UnknownGate,
)
from mechscope.vocabulary.protocols import Codec

CASES = [
    (kind, gate) for kind in KINDS for gate in GATES if kind == "sae" or gate not in ("matching pursuit",)
]


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-9) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=0, atol=atol))


def codes_by_hand(x: torch.Tensor, dictionary: Dictionary, gate: str) -> torch.Tensor:
    """One token, one latent at a time, in Python numbers."""
    t = {name: tensor.tolist() for name, tensor in dictionary.tensors.items()}
    pre = [
        sum(x[i].item() * t["W_enc"][i][f] for i in range(D)) + (t["b_enc"][f] if "b_enc" in t else 0.0)
        for f in range(F)
    ]
    norm = [sum(v * v for v in row) ** 0.5 for row in t["W_dec"]]
    out = [0.0] * F
    if gate == "relu":
        out = [max(p, 0.0) for p in pre]
    elif gate == "gated":
        for f in range(F):
            if pre[f] + t["b_gate"][f] > 0:
                out[f] = max(pre[f] * math.exp(t["r_mag"][f]) + t["b_mag"][f], 0.0)
    elif gate.startswith("jumprelu"):
        size = [p * n for p, n in zip(pre, norm, strict=True)] if "norm" in gate else pre
        out = [p if s > t["threshold"][f] else 0.0 for f, (p, s) in enumerate(zip(pre, size, strict=True))]
    elif gate.startswith("topk"):
        size = {
            "topk by norm": [p * n for p, n in zip(pre, norm, strict=True)],
            "topk by size": [abs(p) for p in pre],
        }.get(gate, pre)
        k = GATES[gate].k
        for f in sorted(range(F), key=lambda f: -size[f])[:k]:
            out[f] = pre[f] if gate in ("topk by size", "topk keeping negatives") else max(pre[f], 0.0)
    elif gate == "groupmax":
        for start in range(0, F, 4):
            f = max(range(start, start + 4), key=lambda f: pre[f])
            out[f] = max(pre[f], 0.0)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate != "matching pursuit"])
def test_codes_equal_arithmetic_by_hand(gate: str) -> None:
    dictionary = random_dictionary("sae", gate)
    values = values_for(dictionary)
    found = dictionary.encode(values)
    assert found.count_nonzero() > 0
    for x, codes in zip(values, found, strict=True):
        assert close(codes, codes_by_hand(x, dictionary, gate))


def test_matching_pursuit_takes_orthonormal_atoms_in_order_of_size() -> None:
    settings = settings_of("sae", "matching pursuit")
    atoms = torch.zeros(F, D, dtype=torch.float64)
    atoms[:D] = 2 * torch.eye(D)
    atoms[D:] = -torch.eye(D)
    dictionary = Dictionary(settings, {"W_dec": atoms, "b_dec": torch.zeros(D, dtype=torch.float64)})
    x = torch.tensor([[1.0, -4.0, 3.0, 0.5, 0.0, 2.0]], dtype=torch.float64)
    codes = dictionary.encode(x)
    assert codes[0].nonzero()[:, 0].tolist() == [2, 5, 7]
    assert close(dictionary(x), torch.tensor([[0, -4.0, 3.0, 0, 0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize(("kind", "gate"), CASES)
def test_sparse_and_dense_codes_agree_and_the_object_is_a_codec(kind: str, gate: str) -> None:
    dictionary = random_dictionary(kind, gate)
    values = values_for(dictionary)
    assert isinstance(dictionary, Codec)
    dense, sparse = dictionary.encode(values), dictionary.encode_sparse(values, batch_tokens=3)
    assert close(sparse.to_dense(), dense)
    assert close(dictionary.decode(sparse, values), dictionary.decode(dense, values))
    assert close(dictionary(values), dictionary.decode(dense, values))
    batched = dictionary.encode(values.reshape(1, *values.shape))
    assert close(batched[0], dense)
    assert sparse.counts.tolist() == (dense != 0).sum(-1).tolist()


def test_sparse_codes_of_a_rectangle_leave_zeros_out() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    codes = SparseCodes.of_rectangle(values, torch.tensor([[4, 1], [0, 2]]), 5)
    assert codes.to_dense().tolist() == [[0, 0, 0, 0, 1.0], [2.0, 0, 3.0, 0, 0]]
    assert codes.tokens.tolist() == [0, 1, 1]


def test_no_tokens_give_no_codes() -> None:
    dictionary = random_dictionary()
    empty = torch.zeros(0, D, dtype=torch.float64)
    assert dictionary.encode(empty).shape == (0, F)
    assert dictionary.encode_sparse(empty).n_tokens == 0
    assert dictionary.decode(dictionary.encode_sparse(empty)).shape == (0, D)


def test_a_cross_layer_transcoder_writes_only_to_its_targets() -> None:
    dictionary = random_dictionary("cross_layer_transcoder")
    codes = torch.zeros(1, F, dtype=torch.float64)
    codes[0, F // 2] = 1.0  # a latent of the later site read
    change = dictionary.decode(codes) - dictionary.decode(torch.zeros_like(codes))
    assert change[0, 0].abs().max() == 0
    assert close(change[0, 1], dictionary.tensors["W_dec.1"][0, 0])
    assert close(dictionary.decoder_rows()[F // 2].reshape(2, D), change[0])


@pytest.mark.parametrize("form", ["number", "vector", "matrix"])
@pytest.mark.parametrize("applies", [False, True])
@pytest.mark.parametrize(("kind", "gate"), CASES)
def test_folding_changes_neither_codes_nor_reconstruction(
    kind: str, gate: str, applies: bool, form: str
) -> None:
    plain = random_dictionary(kind, gate, applies_b_dec_to_input=applies)
    dictionary = normalized_dictionary(plain, form)
    values = values_for(dictionary)
    needs_number = gate in ("topk by norm", "matching pursuit")
    is_mixed = kind == "cross_layer_transcoder" and form == "matrix"
    if is_mixed or (form != "number" and needs_number) or (gate == "matching pursuit" and not applies):
        with pytest.raises(FoldingError):
            dictionary.folded()
        return
    folded = dictionary.folded()
    assert close(folded.encode(values), dictionary.encode(values), 1e-8)
    assert close(folded(values), dictionary(values), 1e-8)
    assert not close(plain(values), dictionary(values), 1e-2), "the normalisation does something"
    with pytest.raises(FoldingError, match="already"):
        folded.folded()


@pytest.mark.parametrize("rule", ["layer_norm", "token_norm"])
def test_a_scale_of_each_token_is_applied_and_not_folded(rule: str) -> None:
    dictionary = random_dictionary(normalization=Normalization(rule=rule))
    values = values_for(dictionary)
    assert close(dictionary.encode(values * 3), dictionary.encode(values), 1e-4)
    assert close(dictionary(values * 3), 3 * dictionary(values), 1e-3)
    with pytest.raises(FoldingError, match="token"):
        dictionary.folded()
    with pytest.raises(DictionaryMismatch, match="values"):
        dictionary.decode(dictionary.encode(values))


@pytest.mark.parametrize(("kind", "gate"), CASES)
def test_a_unit_decoder_keeps_the_reconstruction(kind: str, gate: str) -> None:
    dictionary = random_dictionary(kind, gate)
    values = values_for(dictionary)
    if gate in ("topk", "topk by size", "topk keeping negatives", "groupmax"):
        with pytest.raises(FoldingError, match="largest"):
            dictionary.with_unit_decoder()
        return
    unit = dictionary.with_unit_decoder()
    assert close(unit.decoder_norms(), torch.ones(F, dtype=torch.float64))
    assert close(unit(values), dictionary(values), 1e-8)
    assert close(unit.encode(values), dictionary.encode(values) * dictionary.decoder_norms(), 1e-8)


@pytest.mark.parametrize(("kind", "gate"), CASES)
def test_saving_and_opening_gives_the_same_bits(kind: str, gate: str, tmp_path) -> None:
    dictionary = normalized_dictionary(random_dictionary(kind, gate), "number")
    dictionary.save(tmp_path / "one")
    for opened in (Dictionary.open(tmp_path / "one"), open_dictionary(tmp_path / "one")):
        assert opened.settings == dictionary.settings
        assert opened.tensors.keys() == dictionary.tensors.keys()
        assert all(torch.equal(opened.tensors[name], dictionary.tensors[name]) for name in dictionary.tensors)
    assert settings_from_json(dictionary.settings.to_json()) == dictionary.settings


def test_changed_tensors_and_foreign_folders_are_refused(tmp_path) -> None:
    random_dictionary(seed=0).save(tmp_path / "one")
    random_dictionary(seed=1).save(tmp_path / "two")
    (tmp_path / "two" / "dictionary.safetensors").replace(tmp_path / "one" / "dictionary.safetensors")
    with pytest.raises(ChecksumMismatch):
        Dictionary.open(tmp_path / "one")
    (tmp_path / "three").mkdir()
    with pytest.raises(BadFile, match="no known format"):
        open_dictionary(tmp_path / "three")
    with pytest.raises(BadFile, match="no dictionary"):
        open_dictionary(tmp_path / "four")


def test_a_nested_dictionary_is_the_first_latents() -> None:
    dictionary = random_dictionary("sae", "jumprelu", prefixes=(4, F))
    small = dictionary.prefix(4)
    values = values_for(dictionary)
    assert close(small.encode(values), dictionary.encode(values)[:, :4])
    assert close(small(values), dictionary.encode(values)[:, :4] @ dictionary.W_dec[:4] + dictionary.b_dec)
    with pytest.raises(DictionaryMismatch, match="nested"):
        dictionary.prefix(5)


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(UnknownGate, match="softmax"):
        Gate(rule="softmax")
    with pytest.raises(UnknownGate, match="needs a whole k"):
        Gate(rule="topk")
    with pytest.raises(UnknownGate, match="takes no k"):
        Gate(rule="relu", k=3)
    settings = settings_of("sae", "jumprelu")
    tensors = random_tensors(settings)
    missing = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    with pytest.raises(DictionaryError, match="do not belong") as refusal:
        Dictionary(settings, missing | {"W_enc": tensors["W_enc"].T, "extra": torch.zeros(1)})
    assert all(word in refusal.value.because for word in ("threshold", "W_enc", "extra"))
    with pytest.raises(DictionaryError, match="contradict"):
        replace(settings, prefixes=(4, 3))


def test_values_of_another_width_are_refused_with_both() -> None:
    dictionary = random_dictionary()
    with pytest.raises(DictionaryMismatch) as refusal:
        dictionary.encode(torch.zeros(2, D + 1))
    assert f"{D}" in refusal.value.because and f"{D + 1}" in refusal.value.got
    with pytest.raises(DictionaryMismatch, match="codes"):
        dictionary.decode(torch.zeros(2, F + 1))
