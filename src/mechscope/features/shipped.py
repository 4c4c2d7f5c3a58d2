"""Bundled: the indexes that ship with bundled models, found by name, and how they were made. Imports no torch."""

from pathlib import Path

BUNDLED = Path(__file__).parent.parent / "models" / "bundled"
FOLDER = "features"
TABLE = "README.md"
DEFAULT_SITE = "resid_post.2"


def bundled(name: str) -> Path | None:
    """The folder of a bundled index: "village" (its residual stream in the middle) or "village/resid_post.3".

    Returns:
        None if there is no such index.
    """
    model, _, site = name.partition("/")
    indexes = bundled_indexes(model)
    if not indexes:
        return None
    if not site:
        return indexes.get(DEFAULT_SITE) or next(iter(indexes.values()))
    return indexes.get(site)


def is_shipped(folder: Path) -> bool:
    """Whether a folder is part of the package, and so nobody's to write into."""
    return folder.resolve().is_relative_to(BUNDLED.resolve())


def bundled_indexes(model: str) -> dict[str, Path]:
    """Indexes of a bundled model by the site of their dictionary; none for a model that is not bundled."""
    if not model or Path(model).name != model:
        return {}
    found = sorted((BUNDLED / model / FOLDER).glob("*/manifest.json"))
    return {path.parent.name: path.parent for path in found}
