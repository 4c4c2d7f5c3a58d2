"""The induction specimen: a two-layer, attention-only model whose weights are written down, not trained.

Owns: its words and prompts (`draw_sequences`, `draw_pairs`), its heads (`HEADS`), and the truth about
    which heads and edges do the work (`truth`). `build.py` writes the bundle.
Invariant: whatever a method reports about this model can be compared with what was written.
"""

from mechscope.specimens.induction import truth
from mechscope.specimens.induction.heads import HEADS, Plan
from mechscope.specimens.induction.language import WORDS, InductionPair, draw_pairs, draw_sequences

__all__ = ["HEADS", "WORDS", "InductionPair", "Plan", "draw_pairs", "draw_sequences", "truth"]
