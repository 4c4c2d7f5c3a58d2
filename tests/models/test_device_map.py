"""Models larger than one device: placed by accelerate, left as found; what is not on any device is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

import mechscope as ms
from mechscope.engine.agreement import compare_with_whole_forwards
from mechscope.engine.experiment import Experiment
from mechscope.interventions.metrics import LogitDifference
from mechscope.models import opening
from mechscope.models.inputs import batch_of
from mechscope.vocabulary.errors import OptionalPackageMissing, UnsupportedModel
from tiny_models import tiny

ROWS = [[3, 4, 5, 6, 7], [8, 9, 10]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama", torch.float64).save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    return tmp_path


def own_forwards(hf: nn.Module) -> list[object]:
    return [module.__dict__.get("forward") for module in hf.modules()]


def test_a_device_map_without_accelerate_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda _name: None)
    with pytest.raises(OptionalPackageMissing, match=r"mechscope\[large\]"):
        ms.load(folder, device_map="auto")
    assert ms.load(folder, dtype="float64").n_layers == 3


def test_weights_that_are_on_no_device_are_refused_by_name() -> None:
    hf = tiny("llama")
    hf.model.layers[1].mlp.to("meta")  # type: ignore
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.gate_proj\.weight"):
        ms.wrap(hf)


def test_an_engine_run_leaves_the_forwards_that_another_library_put_on_projections() -> None:
    hf = tiny("llama", torch.float64)
    calls: list[int] = []
    for layer in hf.model.layers:  # type: ignore
        for module in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.mlp.down_proj):
            own = module.forward
            module.forward = lambda *args, own=own: (calls.append(1), own(*args))[1]
    before = own_forwards(hf)
    model = ms.wrap(hf)
    check_patches(model)
    after = own_forwards(hf)
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert calls


def check_patches(model: ms.Model) -> None:
    """Head and residual patches through the engine equal whole forwards."""
    batch = batch_of(ROWS * 20, pad_id=0)
    donor = model.run(batch_of([row[::-1] for row in ROWS] * 20, pad_id=0), capture=["z.*", "resid_post.*"])
    metric = LogitDifference(answers=((1,),) * 40, wrong=((2,),) * 40)
    experiments = [
        Experiment(inputs=batch, writes=(ms.patch(at, donor, positions=where),), metric=metric, name=at)
        for at in ("z.0", "z.1", "resid_post.1")
        for where in (None, -1)
    ]
    assert compare_with_whole_forwards(model, experiments).difference < 1e-10


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu", "auto"])
def test_a_model_placed_by_a_device_map_is_the_model(folder: Path, device_map: object) -> None:
    pytest.importorskip("accelerate")
    placed, plain = (ms.load(folder, dtype="float64", device_map=which) for which in (device_map, None))
    assert torch.equal(placed.logits(ROWS).cpu(), plain.logits(ROWS))
    assert placed.fingerprint.weights_sha256 == plain.fingerprint.weights_sha256
    assert placed.generate(ROWS, max_new_tokens=3, returns="tokens") == plain.generate(
        ROWS, max_new_tokens=3, returns="tokens"
    )
    check_patches(placed)


def test_a_part_that_a_device_map_puts_on_the_disk_is_refused(folder: Path, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    hf = tiny("llama", torch.float64)
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{n}": "disk" if n == 2 else "cpu" for n in range(3)}
    accelerate.dispatch_model(hf, parts, offload_dir=tmp_path / "away", force_hooks=True)
    with pytest.raises(UnsupportedModel, match=r"offloaded"):
        ms.wrap(hf)


@pytest.mark.gpu
def test_layers_on_two_devices_give_what_one_device_gives(folder: Path) -> None:
    pytest.importorskip("accelerate")
    plain = ms.load(folder, dtype="float64", device="cuda")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    parts = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    placed = ms.load(
        folder, dtype="float64", device_map=parts | {f"model.layers.{n}": n % 2 for n in range(3)}
    )
    assert torch.allclose(placed.logits(ROWS).cpu(), plain.logits(ROWS).cpu(), atol=1e-10)
    check_patches(placed)
