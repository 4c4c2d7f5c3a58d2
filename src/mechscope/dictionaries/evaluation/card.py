"""Card: does a dictionary do what it is recorded to do? L0 and FVU on a pinned text, and flags where it was misread.

A dictionary that is read under another gate, without its scale or with its bias misplaced gives codes without an
error. Its figures give it away: against those on record where there are any, against what is possible at all, and
against the same tensors read otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.dictionaries.evaluation.reading import fitted, pieces
from mechscope.dictionaries.evaluation.sums import Sums
from mechscope.dictionaries.settings import Calibration, Gate, Normalization, Settings
from mechscope.models.calibration import calibration_batch
from mechscope.models.inputs import Bos, Inputs
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import MechscopeError

SAME_TEXT = {"l0": 0.02, "fvu": 0.01}
"""Allowed differences on the very text of the record: of L0 relative, of FVU absolute."""

OTHER_TEXT = {"l0": 0.5, "fvu": 0.15}
"""Allowed differences on another text: texts differ, misreadings differ more."""

MOST_ACTIVE, LEAST_RATIO, MOST_RATIO, MUCH_BETTER = 0.25, 0.5, 2.0, 0.5


@dataclass(frozen=True, eq=False)
class Card:
    """A dictionary's figures, and what is suspicious about them.

    Args:
        l0: Active latents per token.
        fvu: Fraction of variance unexplained: 0 is perfect, 1 is the mean.
        dead: Share of latents that never fired on this text.
        norm_ratio: Norm of the output over that of the target.
        flags: What speaks for a misread dictionary, in words; empty if nothing does.
        readings: L0 and FVU of the same tensors under other readings.
        recorded: Figures on record.
        n_tokens: Tokens measured.
        data_sha256: Hash of the text.
        bos: What was done about its beginning-of-sequence token, as `TokenBatch` says it.
    """

    l0: Estimate
    fvu: Estimate
    dead: float
    norm_ratio: Estimate
    flags: tuple[str, ...]
    readings: dict[str, tuple[float, float]] = field(default_factory=dict)
    recorded: Calibration = field(default_factory=Calibration)
    n_tokens: int = 0
    data_sha256: str = ""
    bos: Bos = "given"

    @property
    def is_consistent(self) -> bool:
        """Nothing speaks for a misread dictionary."""
        return not self.flags

    def calibration(self) -> Calibration:
        """These figures as the record that a later card is compared with."""
        return Calibration(
            l0=self.l0.value,
            fvu=self.fvu.value,
            dead=self.dead,
            n_tokens=self.n_tokens,
            data_sha256=self.data_sha256,
        )

    def __repr__(self) -> str:
        lines = [f"  l0 {self.l0!r}   fvu {self.fvu!r}   dead {self.dead:.3g}"]
        lines += [f"  ! {flag}" for flag in self.flags]
        return "\n".join([f"<Card on {self.n_tokens} tokens", *lines, ">"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "l0": self.l0.to_json(),
            "fvu": self.fvu.to_json(),
            "norm_ratio": self.norm_ratio.to_json(),
            "dead": self.dead,
            "flags": list(self.flags),
            "readings": {name: list(one) for name, one in self.readings.items()},
            "n_tokens": self.n_tokens,
            "data_sha256": self.data_sha256,
            "bos": self.bos,
        }


def card(dictionary: Dictionary, model: Model, text: Inputs | None = None, *, batch_size: int = 8) -> Card:
    """Measure L0 and FVU, compare them with the record, and try the other readings of the same tensors.

    Args:
        dictionary: As it was opened.
        model: The model that it was trained on.
        text: Prompts; the model's calibration text by default, which is pinned.
        batch_size: Prompts at a time; changes no result.

    Returns:
        The figures with flags; `dictionary.with_settings(calibration=card.calibration())` puts them on record.

    Cost: one forward pass to the last site, and one encoding for each reading.
    """
    dictionary = fitted(dictionary, model)
    whole = calibration_batch(model) if text is None else model.tokens(text)
    others = dict(other_readings(dictionary))
    every = {"": dictionary, **others}
    d_out, n = dictionary.settings.d_out, dictionary.n_latents
    sums = {name: Sums.empty(n_units=len(whole), d_out=d_out, n_latents=n) for name in every}
    skips = dictionary.settings.source.skips_special
    for piece in pieces(dictionary, model, text=whole, batch_size=batch_size, skips_special=skips):
        for name, one in every.items():
            codes = one.encode_sparse(piece.read)
            output = one.decode(codes, piece.read).reshape(len(piece.read), -1)
            sums[name].add(piece.units, target=piece.written, output=output, codes=codes)
    figures = sums[""].figures(Estimator(len(whole)))
    readings = {name: _values(sums[name]) for name in others}
    data = hash_tensors({"ids": whole.ids, "n_pad": whole.n_pad})
    recorded = dictionary.settings.calibration
    found = {name: figures[name].value for name in ("l0", "fvu", "norm_ratio")}
    flags = [*_against_record(found, readings, recorded, data == recorded.data_sha256)]
    flags += _against_the_possible(found, dictionary.settings, recorded)
    flags += _against_readings(found, readings)
    dead = float((sums[""].density() == 0).mean())
    if dead == 1:
        flags.append(
            "no latent ever fires: a threshold in other units, or inputs that were scaled in training"
        )
    return Card(
        l0=figures["l0"],
        fvu=figures["fvu"],
        dead=dead,
        norm_ratio=figures["norm_ratio"],
        flags=tuple(dict.fromkeys(flags)),
        readings=readings,
        recorded=recorded,
        n_tokens=sums[""].n_tokens,
        data_sha256=data,
        bos=whole.bos,
    )


def other_readings(dictionary: Dictionary) -> Iterator[tuple[str, Dictionary]]:
    """The same tensors under the mistakes that loaders make, by name."""
    settings, tensors = dictionary.settings, dictionary.tensors
    gate, norm = settings.gate, settings.normalization
    changes: dict[str, dict[str, Any]] = {}
    if gate.rule in ("topk", "jumprelu"):
        other = "pre" if gate.compares != "pre" else "pre_times_decoder_norm"
        changes[f"a gate that compares {other}"] = {"gate": replace(gate, compares=other)}
        changes["no threshold and no top-k"] = {"gate": Gate(rule="relu")}
    if gate.rule == "relu":
        counts = {max(1, settings.n_latents // part) for part in (16, 64)}
        changes |= {f"a top-k of {k}": {"gate": Gate(rule="topk", k=k)} for k in sorted(counts)}
    if settings.d_in == settings.d_out and settings.kind == "sae":
        verb = "not subtracted" if settings.applies_b_dec_to_input else "subtracted"
        changes[f"b_dec {verb} from the input"] = {
            "applies_b_dec_to_input": not settings.applies_b_dec_to_input
        }
    if norm.is_pending:
        changes["inputs that are not normalised"] = {"normalization": Normalization()}
    elif not norm.is_folded:
        changes["inputs normalised token by token"] = {"normalization": Normalization(rule="layer_norm")}
    for name, change in changes.items():
        kept = _kept(tensors, change)
        try:
            yield name, Dictionary(replace(settings, **change), kept)
        except MechscopeError:
            continue


def _kept(tensors: dict[str, Tensor], change: dict[str, Any]) -> dict[str, Tensor]:
    dropped: set[str] = set()
    if "gate" in change and change["gate"].rule == "relu":
        dropped.add("threshold")
    if "normalization" in change:
        dropped |= {"in_mean", "in_scale", "out_mean", "out_scale"}
    return {name: one for name, one in tensors.items() if name not in dropped}


def _values(sums: Sums) -> tuple[float, float]:
    fvu = float(sums.column("error").sum()) / max(
        sums.variance * sums.n_tokens, torch.finfo(torch.float64).tiny
    )
    return float(sums.column("l0").sum()) / max(1, sums.n_tokens), fvu


def _against_record(
    found: dict[str, float],
    readings: dict[str, tuple[float, float]],
    recorded: Calibration,
    is_same_text: bool,
) -> Iterator[str]:
    allowed = SAME_TEXT if is_same_text else OTHER_TEXT
    for index, name in enumerate(("l0", "fvu")):
        want, have = getattr(recorded, name), found[name]
        if want is None:
            continue
        if _is_near(name, have, want, allowed):
            continue
        fitting = [one for one, figures in readings.items() if _is_near(name, figures[index], want, allowed)]
        hint = f"; it would be right with {' or '.join(fitting)}" if fitting else ""
        yield f"{name} is {have:.4g}, on record is {want:.4g}{hint}"


def _is_near(name: str, have: float, want: float, allowed: dict[str, float]) -> bool:
    difference = abs(have - want)
    return difference <= allowed[name] * (max(abs(want), 1e-12) if name == "l0" else 1)


def _against_the_possible(
    found: dict[str, float], settings: Settings, recorded: Calibration
) -> Iterator[str]:
    if found["fvu"] >= 1:
        yield f"fvu is {found['fvu']:.4g}: it explains less than the mean does"
    on_record = recorded.l0 is not None and _is_near("l0", found["l0"], recorded.l0, OTHER_TEXT)
    if found["l0"] > MOST_ACTIVE * settings.n_latents and not on_record:
        missing = "a threshold or a top-k" if settings.gate.rule == "relu" else "a threshold"
        yield f"{found['l0']:.4g} of {settings.n_latents} latents are active at a token: {missing} may be missing"
    if not LEAST_RATIO <= found["norm_ratio"] <= MOST_RATIO and found["norm_ratio"] > 0:
        yield f"outputs are {found['norm_ratio']:.3g} times as long as what they stand for: a scale may be missing"


def _against_readings(found: dict[str, float], readings: dict[str, tuple[float, float]]) -> Iterator[str]:
    """A reading that is as sparse and explains far more is likely to be the right one."""
    for name, (l0, fvu) in readings.items():
        if l0 <= 1.5 * max(found["l0"], 1) and fvu < MUCH_BETTER * found["fvu"] and fvu < 1:
            yield f"with {name} the fvu would be {fvu:.4g} instead of {found['fvu']:.4g}, at an L0 of {l0:.4g}"
