"""What is no latent, no way to be near and no ranking is refused with what there is."""

from pathlib import Path

import pytest

from features.cases import built
from mechscope.vocabulary.errors import BadCommand, PositionOutOfRange


def test_nonsense_asked_of_an_index_is_refused_by_name(tmp_path: Path) -> None:
    index = built(tmp_path / "i")
    for nonsense in (3.7, "a", slice(2), None):
        with pytest.raises(PositionOutOfRange, match="0 to 23"):
            index[nonsense]  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadCommand, match="'decoder', 'encoder', 'behavior'"):
        index.neighbors(4, by="decode")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadCommand, match="specific, relative, activation"):
        index.search("w3", over="fires", rank="rarest")
