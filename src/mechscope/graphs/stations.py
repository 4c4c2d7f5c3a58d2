"""Stations: the places of a layer that gradients pass on their way down, as whole numbers in forward order.

Station 8 * layer + k, k one of the constants below; `resid_post.l` and `resid_pre.l+1` are one station. What a
dictionary reads or writes in an attribution graph is a station; other points are refused with the nearest.
"""

from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.sites import Site

PER_LAYER = 8
RESID_PRE, ATTN_IN, ATTN_RAW, ATTN_OUT, RESID_MID, MLP_IN, MLP_RAW, MLP_OUT = range(PER_LAYER)
LN_FINAL = 1
"""Offset of the final norm's output behind the last layer's output."""

_POINTS = {
    "resid_pre": RESID_PRE,
    "ln1": ATTN_IN,
    "attn_in": ATTN_IN,
    "attn_raw": ATTN_RAW,
    "attn_out": ATTN_OUT,
    "resid_mid": RESID_MID,
    "ln2": MLP_IN,
    "mlp_in": MLP_IN,
    "mlp_raw": MLP_RAW,
    "mlp_out": MLP_OUT,
    "resid_post": PER_LAYER,
}
_NAMES = {
    RESID_PRE: "resid_pre",
    ATTN_IN: "attn_in",
    ATTN_RAW: "attn_raw",
    ATTN_OUT: "attn_out",
    RESID_MID: "resid_mid",
    MLP_IN: "mlp_in",
    MLP_RAW: "mlp_raw",
    MLP_OUT: "mlp_out",
}
WRITABLE = ("attn_raw", "attn_out", "resid_mid", "mlp_raw", "mlp_out", "resid_post", "resid_pre")


def station_of(site: Site, *, written: bool = False) -> int:
    """The station of a site that a dictionary reads, or writes.

    Raises:
        PointUnavailable: gradients of the graph do not pass there.
    """
    allowed = WRITABLE if written else tuple(_POINTS)
    if site.layer is None or site.point not in allowed or (written and str(site) == "resid_pre.0"):
        raise PointUnavailable(
            f"No attribution graph can have a dictionary that {'writes' if written else 'reads'} {site}.",
            got=str(site),
            because="what enters the first layer is the tokens' own"
            if str(site) == "resid_pre.0"
            else "the frozen model's paths are followed through the residual stream and what is added to it",
            instead=", ".join(allowed),
        )
    return PER_LAYER * site.layer + _POINTS[site.point]


def site_of(station: int, n_layers: int) -> Site:
    """The site of a station; the last layer's output is its `resid_post`."""
    layer, kind = divmod(station, PER_LAYER)
    if layer == n_layers:
        return Site("resid_post", n_layers - 1) if kind == RESID_PRE else Site("ln_final")
    return Site(_NAMES[kind], layer)


def layer_of(station: int, n_layers: int) -> int:
    """The layer that a station is shown at; what leaves the last layer belongs to it."""
    layer, kind = divmod(station, PER_LAYER)
    return layer - 1 if kind == RESID_PRE and layer > 0 else min(layer, n_layers - 1)
