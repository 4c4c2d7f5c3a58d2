"""Patterns name several sites: stars, ranges, and names joined by commas."""

import pytest

from mechscope.vocabulary.errors import AmbiguousSite, UnknownSite
from mechscope.vocabulary.sites import Site, is_pattern, select_sites

FORMED = [Site(point, layer) for layer in range(3) for point in ("resid_pre", "z", "mlp_in", "mlp_out")]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("z.*", ["z.0", "z.1", "z.2"]),
        ("mlp_*.1", ["mlp_in.1", "mlp_out.1"]),
        ("z.1-2", ["z.1", "z.2"]),
        ("mlp_out.2,mlp_in.0", ["mlp_in.0", "mlp_out.2"]),
        ("mlp_in.-1, z.0-1", ["z.0", "z.1", "mlp_in.2"]),
    ],
)
def test_a_pattern_means_these_sites_in_the_order_of_the_forward_pass(name: str, wanted: list[str]) -> None:
    assert is_pattern(name)
    assert [str(site) for site in select_sites(name, FORMED)] == wanted


def test_one_unknown_name_among_several_is_refused_and_several_are_not_one_site() -> None:
    with pytest.raises(UnknownSite, match="zz"):
        select_sites("z.0,zz.1", FORMED)
    with pytest.raises(AmbiguousSite, match="pattern"):
        Site.parse("z.0,z.1")
