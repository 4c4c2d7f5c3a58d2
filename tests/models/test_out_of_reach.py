"""Families whose attention is fused and without the interface: what is inside it is refused by name, with reason."""

import pytest

import mechscope as ms
from family_cases import opened
from mechscope.vocabulary.errors import PointUnavailable

FUSED = ("bloom", "falcon_7b", "falcon_40b", "falcon_rw")


@pytest.mark.parametrize("point", ["z", "scores", "pattern", "q", "k", "v", "head_out"])
@pytest.mark.parametrize("family", FUSED)
def test_a_point_inside_a_fused_attention_is_refused_by_name(family: str, point: str) -> None:
    model = opened(family)
    for act in (
        lambda: model.run([[1, 2, 3]], capture=[f"{point}.1"]),
        lambda: model.run([[1, 2, 3]], interventions=[ms.scale(f"{point}.1", 0.5)]),
    ):
        with pytest.raises(PointUnavailable) as refused:
            act()
        text = str(refused.value)
        assert f"{point}.1" in text or f'"{point}"' in text
        assert "attention" in text and "  instead:" in text, text


@pytest.mark.parametrize("family", FUSED)
def test_the_stream_and_the_mlp_of_such_a_family_are_offered(family: str) -> None:
    points = {site.point for site in opened(family).binding.formed}
    wanted = {"resid_pre", "resid_post", "attn_in", "attn_raw", "attn_out"}
    assert points >= wanted | {"mlp_in", "mlp_pre", "mlp_post", "mlp_raw", "mlp_out", "ln_final"}
