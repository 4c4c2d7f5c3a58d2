"""What village ships with: ten dictionaries with cards and indexes, small enough, whole, and opened without torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

import mechscope as ms
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Calibration, Gate
from mechscope.features.cards import open_card
from mechscope.features.index import open_index
from mechscope.features.manifest import refuse_unless_intact
from mechscope.features.shipped import BUNDLED, FOLDER, TABLE, bundled_indexes
from mechscope.features.shipping import MOST_BYTES, refuse_if_large

SITES = [f"{kind}.{layer}" for kind in ("mlp", "resid_post") for layer in range(5)]


def test_every_layer_has_both_and_all_of_it_is_small() -> None:
    found = bundled_indexes("village")
    assert list(found) == SITES
    assert refuse_if_large(list(found.values())) <= MOST_BYTES
    table = (BUNDLED / "village" / FOLDER / TABLE).read_text()
    assert all(f"| `{site}` |" in table for site in SITES)


@pytest.mark.parametrize("site", SITES)
def test_an_index_is_whole_and_its_card_says_that_the_dictionary_is_good(site: str) -> None:
    index = open_index(f"village/{site}")
    for file in index.manifest.files:
        refuse_unless_intact(index.folder, file)
    card = open_card(index.folder)
    assert card is not None and card["figures"]["fvu"]["value"] < 0.2
    assert card["figures"]["kl_recovered"]["value"] > 0.75 and card["figures"]["dead"]["value"] < 0.1
    assert card["n_latents"] == index.n_latents and len(index.labels) > 10
    busiest = int(index.statistics.total.argmax())
    assert index[busiest].top and index[busiest].promoted is not None


def test_looking_needs_no_torch() -> None:
    told = "import sys, mechscope as ms; ms.features.open('village')[3]; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", told], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_a_bundled_dictionary_does_what_its_record_says() -> None:
    model = ms.load("village")
    dictionary = open_index("village").dictionary()
    card = ms.dictionaries.card(dictionary, model)
    assert card.is_consistent, card
    assert dictionary.settings.source.weights_sha256 == model.fingerprint.weights_sha256
    hits = open_index("village").attached(model).search("It was a day at the harbour. Ann carried a marigold")
    assert hits.hits and "fires" in hits[0].why


def test_a_bundled_transcoder_read_as_relu_is_flagged_without_its_record() -> None:
    dictionary = open_index("village/mlp.2").dictionary()
    tensors = {name: value for name, value in dictionary.tensors.items() if name != "threshold"}
    bare = replace(dictionary.settings, gate=Gate(rule="relu"), calibration=Calibration())
    flags = ms.dictionaries.card(Dictionary(bare, tensors), ms.load("village")).flags
    assert any("a threshold or a top-k may be missing" in flag for flag in flags), flags
