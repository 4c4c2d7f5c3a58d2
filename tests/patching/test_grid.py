"""A patching grid is one patched run a cell: equal to the naive loop, lawful, and right on a known mechanism."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechscope.interventions.metrics import LogProbability
from mechscope.interventions.replace import patch
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.patching import grid as grid_module
from mechscope.patching.grid import patch_grid
from mechscope.patching.grid_result import PatchGrid
from mechscope.specimens.induction import truth
from patching.drawn_pairs import DrawnPairs, induction_pairs, random_pairs, specimen
from tiny_models import tiny

TOLERANCE = 1e-10
_OPEN: dict[str, Model] = {}


def opened(family: str) -> Model:
    """One tiny model a family, in double precision."""
    if family not in _OPEN:
        _OPEN[family] = wrap(tiny(family, torch.float64), check=False)
    return _OPEN[family]


def naive_table(
    model: Model, pairs: DrawnPairs, site: str, *, direction: str, selections: list, component: str, n: int
) -> np.ndarray:
    """The metric of one whole forward a cell, [layer, component, position, pair]."""
    recipient, source = pairs.corrupt, pairs.clean
    if direction == "noising":
        recipient, source = source, recipient
    donor = model.run(source, capture=f"{site}.*")
    rows = []
    for layer in range(model.n_layers):
        for index in range(n):
            for positions in selections:
                chosen = {component: [index]} if component else {}
                write = patch(f"{site}.{layer}", donor, positions=positions, **chosen)
                rows.append(measured(pairs, model.logits(recipient, interventions=[write])))
    return np.stack(rows).reshape(model.n_layers, n, len(selections), -1)


def measured(pairs: DrawnPairs, logits: torch.Tensor) -> np.ndarray:
    """The pairs' logit difference at the last token, by hand."""
    metric = pairs.metric
    found = [
        logits[row, -1, metric.answers[row][0]] - logits[row, -1, metric.wrong[row][0]]  # type: ignore[attr-defined]
        for row in range(len(logits))
    ]
    return torch.stack(found).numpy()


@pytest.mark.parametrize(
    ("family", "site", "direction"),
    [
        ("gpt2", "resid_pre", "denoising"),
        ("llama", "resid_pre", "noising"),
        ("llama", "resid_mid", "denoising"),
        ("gpt2", "attn_out", "noising"),
        ("llama", "attn_out", "denoising"),
        ("llama", "mlp_out", "denoising"),
        ("gpt2", "resid_post", "denoising"),
    ],
)
def test_a_grid_over_positions_equals_one_forward_a_cell(family: str, site: str, direction: str) -> None:
    model = opened(family)
    pairs = random_pairs(model, differ_at=(2, 4))
    grid = patch_grid(model, pairs, site=site, direction=direction)
    naive = naive_table(
        model, pairs, site, direction=direction, selections=[[p] for p in range(7)], component="", n=1
    )
    assert grid.per_pair.dims == ("layer", "pos", "pair")
    assert np.abs(grid.per_pair.values - naive[:, 0]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("family", "site"),
    [("gpt2", "z"), ("llama", "z"), ("llama", "q"), ("llama", "k"), ("llama", "v"), ("gpt2", "pattern")],
)
def test_a_grid_over_heads_equals_one_forward_a_cell(family: str, site: str) -> None:
    model = opened(family)
    pairs = random_pairs(model, differ_at=None)
    n = model.n_kv_heads if site in ("k", "v") else model.n_heads
    grid = patch_grid(model, pairs, site=site)
    naive = naive_table(model, pairs, site, direction="denoising", selections=[None], component="heads", n=n)
    assert grid.per_pair.dims == ("layer", "kv_head" if site in ("k", "v") else "head", "pair")
    assert np.abs(grid.per_pair.values - naive[:, :, 0]).max() < TOLERANCE


def test_a_grid_over_heads_and_positions_equals_one_forward_a_cell() -> None:
    model = opened("llama")
    pairs = random_pairs(model, differ_at=(1, 3))
    grid = patch_grid(model, pairs, site="z", positions="each")
    naive = naive_table(
        model,
        pairs,
        "z",
        direction="denoising",
        selections=[[p] for p in range(7)],
        component="heads",
        n=model.n_heads,
    )
    assert grid.values.dims == ("layer", "head", "pos")
    assert np.abs(grid.per_pair.values - naive).max() < TOLERANCE


def test_a_grid_over_neurons_equals_one_forward_a_cell() -> None:
    model = opened("llama")
    pairs = random_pairs(model, differ_at=None)
    grid = patch_grid(model, pairs, site="mlp_post.1-2", units=[0, 7, 43])
    donor = model.run(pairs.clean, capture="mlp_post.*")
    for layer in (1, 2):
        for unit in (0, 7, 43):
            write = patch(f"mlp_post.{layer}", donor, units=[unit])
            expected = measured(pairs, model.logits(pairs.corrupt, interventions=[write]))
            assert np.abs(grid.per_pair.sel(layer=layer, unit=unit).values - expected).max() < TOLERANCE
    assert patch_grid(model, pairs, site="mlp_post.1").values.shape == (1, 44)


def test_a_grid_equals_hooks_written_by_hand_on_the_untouched_model() -> None:
    hf = tiny("gpt2", torch.float64)
    model = wrap(hf, check=False)
    pairs = random_pairs(model, differ_at=(2,))
    blocks = hf.transformer.h  # type: ignore[union-attr]
    kept: dict[tuple[str, int], torch.Tensor] = {}

    def patched(module, key, index) -> np.ndarray:
        def hook(_module, args):
            value = args[0].clone()
            value[index] = kept[key][index]
            return (value, *args[1:])

        handle = module.register_forward_pre_hook(hook)
        with torch.no_grad():
            logits = hf(pairs.corrupt.ids).logits
        handle.remove()
        return measured(pairs, logits)

    handles = [
        module.register_forward_pre_hook(lambda _m, args, key=key: kept.update({key: args[0].clone()}))
        for layer, block in enumerate(blocks)
        for key, module in ((("resid", layer), block), (("z", layer), block.attn.c_proj))
    ]
    with torch.no_grad():
        hf(pairs.clean.ids)
    for handle in handles:
        handle.remove()
    residual, heads = patch_grid(model, pairs), patch_grid(model, pairs, site="z")
    for layer, block in enumerate(blocks):
        for position in range(7):
            expected = patched(block, ("resid", layer), (slice(None), position))
            assert (
                np.abs(residual.per_pair.sel(layer=layer, pos=position).values - expected).max() < TOLERANCE
            )
        for head in range(4):
            columns = (slice(None), slice(None), slice(8 * head, 8 * head + 8))
            expected = patched(block.attn.c_proj, ("z", layer), columns)
            assert np.abs(heads.per_pair.sel(layer=layer, head=head).values - expected).max() < TOLERANCE


def test_the_comparison_sees_a_wrong_direction_and_a_shifted_position() -> None:
    model = opened("gpt2")
    pairs = random_pairs(model, differ_at=(2, 4))
    shared = {"selections": [[p] for p in range(7)], "component": "", "n": 1}
    right = patch_grid(model, pairs).per_pair.values
    assert (
        np.abs(naive_table(model, pairs, "resid_pre", direction="noising", **shared)[:, 0] - right).max()
        > 0.01
    )
    shared["selections"] = [[(p + 1) % 7] for p in range(7)]
    assert (
        np.abs(naive_table(model, pairs, "resid_pre", direction="denoising", **shared)[:, 0] - right).max()
        > 0.01
    )


def test_patching_everything_gives_the_other_run() -> None:
    model = opened("llama")
    pairs = random_pairs(model, differ_at=None)
    everything = patch_grid(model, pairs, positions="all")
    assert np.abs(everything.per_pair.values - everything.clean.values).max() < TOLERANCE
    last = patch_grid(model, pairs, site="resid_post.2", positions=-1, direction="noising")
    assert np.abs(last.per_pair.values - last.corrupt.values).max() < TOLERANCE


def test_recovered_is_1_at_the_clean_run_and_0_at_the_corrupt_run_in_both_directions() -> None:
    model = specimen()
    pairs = induction_pairs(model, "key", n=8)
    for direction, everything in (("denoising", 1.0), ("noising", 0.0)):
        grid = patch_grid(model, pairs, positions={"all": None, "first": 0}, direction=direction)
        assert np.allclose(grid.recovered.sel(pos="all").values, everything, atol=1e-6)
        assert np.allclose(grid.recovered.sel(pos="first").values, 1 - everything, atol=1e-6)


def test_where_the_twins_agree_the_value_is_exactly_the_patched_runs() -> None:
    model = opened("gpt2")
    grid = patch_grid(model, random_pairs(model, differ_at=(2,)))
    assert (grid.per_pair.sel(pos=[0, 1]).values == grid.corrupt.values).all()
    assert (grid.per_pair.sel(layer=0, pos=[3, 4, 5, 6]).values == grid.corrupt.values).all()
    assert (grid.per_pair.sel(layer=1, pos=[2, 4, 6]).values != grid.corrupt.values).all()


def test_noising_is_denoising_of_the_swapped_pair() -> None:
    model = opened("gpt2")
    pairs = random_pairs(model, differ_at=(1, 4))
    swapped = DrawnPairs(pairs.corrupt, pairs.clean, pairs.metric)
    noising = patch_grid(model, pairs, direction="noising")
    assert np.array_equal(noising.per_pair.values, patch_grid(model, swapped).per_pair.values)
    assert np.array_equal(noising.clean.values, patch_grid(model, swapped).corrupt.values)


def test_prompts_of_several_lengths_are_counted_from_the_end_or_by_name() -> None:
    model = opened("llama")
    pairs = random_pairs(model, lengths=(9, 6, 8), differ_at=(2,))
    grid = patch_grid(model, pairs, positions="from-end")
    assert grid.values.coords["pos"] == tuple(range(-6, 0))
    assert patch_grid(model, pairs) == grid and "from-end" in repr(grid)
    named = patch_grid(model, pairs, positions={"third": [[2], [2], [2]], "end": -1})
    assert named.values.labels("pos") == ("third", "end")
    for row in range(3):
        alone = DrawnPairs(pairs.clean.select([row]), pairs.corrupt.select([row]), pairs.metric.select([row]))
        single = patch_grid(model, alone)
        n = int(pairs.clean.n_real[row])
        ends = single.per_pair.sel(pos=list(range(n - 6, n))).values[..., 0]
        assert np.abs(grid.per_pair.values[..., row] - ends).max() < TOLERANCE
        third = single.per_pair.sel(pos=[2, n - 1]).values[..., 0]
        assert np.abs(named.per_pair.values[..., row] - third).max() < TOLERANCE


def test_positions_show_the_words_that_stand_there() -> None:
    model = specimen()
    pairs = induction_pairs(model, "query", n=1)
    words = patch_grid(model, pairs).values.labels("pos")
    clean, corrupt = model.str_tokens(pairs.clean), model.str_tokens(pairs.corrupt)
    assert words[:-1] == tuple(clean[:-1]) and words[-1] == f"{clean[-1]}|{corrupt[-1]}"
    several = patch_grid(model, induction_pairs(model, "query", n=3)).values
    assert several.labels("pos")[0] == clean[0] and several.labels("pos")[3] == "[3]"


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama")
    pairs = random_pairs(model, lengths=(9, 6, 8, 9), differ_at=(2,))
    positions = {"third": [[2], [2], [2], [2]], "end": -1}
    whole = patch_grid(model, pairs, positions=positions)
    monkeypatch.setattr(grid_module, "DONOR_BYTES", 1)
    apart = patch_grid(model, pairs, positions=positions)
    assert np.abs(whole.per_pair.values - apart.per_pair.values).max() < TOLERANCE


def test_a_metric_that_reads_every_column_serves_too() -> None:
    model = opened("gpt2")
    pairs = random_pairs(model)
    metric = LogProbability(answers=pairs.metric.answers)  # type: ignore[attr-defined]
    grid = patch_grid(model, DrawnPairs(pairs.clean, pairs.corrupt, metric), site="attn_out", positions=-1)
    log_p = model.logits(pairs.clean).log_softmax(-1)[:, -1]
    expected = [float(log_p[row, metric.answers[row][0]]) for row in range(3)]
    assert np.abs(grid.clean.values - expected).max() < TOLERANCE
    assert grid.unit == "nats"


@pytest.mark.parametrize("template", ["key", "query", "value"])
def test_the_heads_of_the_specimen_are_found_and_no_others(template: str) -> None:
    model = specimen()
    grid = patch_grid(model, induction_pairs(model, template), site="z")
    true = set(truth.HEADS_UNDER_RESAMPLING[template])
    found = {(cell["layer"], cell["head"]) for cell, _ in grid.top(len(true))}
    assert found == true
    others = [v for cell, v in grid.recovered.top(32) if (cell["layer"], cell["head"]) not in true]
    assert min(grid.recovered.sel(layer=a, head=b).values for a, b in true) > 0.9
    assert max(abs(value) for value in others) < 0.05


def test_a_random_model_on_random_prompts_shows_nothing() -> None:
    model = opened("gpt2")
    pairs = random_pairs(model, lengths=(6,) * 48, differ_at=None, seed=5)
    grid = patch_grid(model, pairs, site="z")
    low, high = grid.gap[1:]
    assert low < 0 < high
    effects = grid.effects
    assert effects.low is not None and effects.high is not None
    distinct = (effects.low > 0) | (effects.high < 0)
    assert distinct.sum() <= 2  # of 12, at 95% each
    true = patch_grid(specimen(), induction_pairs(specimen(), "query"), site="z.1").effects
    assert true.low is not None and true.low[0, truth.INDUCTION[1]] > 0  # the same rule sees what is there


def test_a_grid_is_saved_and_read_back_equal(tmp_path: Path) -> None:
    model = opened("gpt2")
    grid = patch_grid(model, random_pairs(model), positions="from-end")
    grid.save(tmp_path / "grid.json")
    read = PatchGrid.load(tmp_path / "grid.json")
    assert read == grid
    assert read.values == grid.values
    assert read.settings["direction"] == "denoising" and read.model == model.fingerprint


def test_a_grid_says_its_conventions_in_its_figure() -> None:
    model = specimen()
    grid = patch_grid(model, induction_pairs(model, "key", n=4))
    title = grid.plot().layout.title.text
    assert "denoising" in title and "logit_difference" in title and "4" in title
    assert "recovered" in repr(grid) and "<svg" in grid._repr_html_()


def test_progress_is_told_and_ends_at_the_whole() -> None:
    model = opened("gpt2")
    told: list[tuple[int, int]] = []
    patch_grid(model, random_pairs(model), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (66, 66)  # 3 pairs x (3 x 7 cells + the run as it is)
