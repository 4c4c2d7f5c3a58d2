"""Floor 7: the feature index: what each latent does over a text; search, neighbours, labels, pages.

Names are imported when they are first used: opening an index that is there needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what an editor and a type checker see
    from mechscope.features.building import build as build
    from mechscope.features.index import FeatureIndex as FeatureIndex
    from mechscope.features.index import open_index as _open_index
    from mechscope.features.labels import Label as Label
    from mechscope.features.manifest import IndexSettings as IndexSettings
    from mechscope.features.page import FeaturePage as FeaturePage
    from mechscope.features.searching import SearchResult as SearchResult
    from mechscope.features.shipped import bundled as bundled
    from mechscope.features.shipped import bundled_indexes as bundled_indexes

    open = _open_index

_PLACES: dict[str, str] = {
    "FeatureIndex": "index:FeatureIndex",
    "FeaturePage": "page:FeaturePage",
    "IndexSettings": "manifest:IndexSettings",
    "Label": "labels:Label",
    "SearchResult": "searching:SearchResult",
    "build": "building:build",
    "bundled": "shipped:bundled",
    "bundled_indexes": "shipped:bundled_indexes",
    "open": "index:open_index",
}

__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'mechscope.features' has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    value = getattr(importlib.import_module(f"mechscope.features.{module}"), attribute)
    globals()[name] = value
    return value
