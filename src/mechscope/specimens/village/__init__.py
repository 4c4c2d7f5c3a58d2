"""The village: two small trained language models whose knowledge, gaps and misbehaviours are on record.

`prompts` draws clean and corrupted prompts, `language` the text, `truth` says what was planted, `train` and
`evaluate` make the bundled models again. Nothing here imports torch before training or measuring starts.
"""

from mechscope.specimens.village.language import calibration_text, draw_documents
from mechscope.specimens.village.pairs import VillagePair
from mechscope.specimens.village.prompts import BEHAVIORS, MISBEHAVIOURS, draw_pairs
from mechscope.specimens.village.truth import MISBEHAVIOUR_TRUTHS, MisbehaviourTruth

__all__ = [
    "BEHAVIORS",
    "MISBEHAVIOURS",
    "MISBEHAVIOUR_TRUTHS",
    "MisbehaviourTruth",
    "VillagePair",
    "calibration_text",
    "draw_documents",
    "draw_pairs",
]
