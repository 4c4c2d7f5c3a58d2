"""Comparing models by a crosscoder over them: whose each latent is, by its decoders and by what the models carry.

Norms alone mislead: sparsity pressure shrinks a decoder to zero that the model would need (Minder et al. 2025,
arXiv 2504.02922). So beside them stands what each model's values hold along the latent, once the other latents are
taken away.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mechscope.dictionaries.across import labels_of, refuse_other_tokenizers
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimator
from mechscope.dictionaries.evaluation.model_comparison import ModelComparison
from mechscope.dictionaries.evaluation.reading import batches, counted, flat_values
from mechscope.dictionaries.evaluation.sums import Sums
from mechscope.dictionaries.fitting import refuse_unless_fits
from mechscope.models.inputs import Inputs, TokenBatch
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import DictionaryMismatch, NotEnoughEvidence


def compare_models(
    crosscoder: Dictionary, models: Mapping[str, Model], text: Inputs, *, batch_size: int = 8
) -> ModelComparison:
    """Say of each latent of a crosscoder over models in which of them it is.

    Args:
        crosscoder: Its ports carry the models' labels: from `train_across`, or opened with `model="base,tuned"`.
        models: By these labels.
        text: Prompts that it was not trained on.
        batch_size: Prompts at a time; changes no result.

    Returns:
        Decoder norms, presence, cosine and density of each latent, and FVU by model with intervals over prompts;
        `only_in(label)` lists latents that are one model's own.

    Raises:
        DictionaryMismatch: no crosscoder over these models, or inputs normalised token by token or by a matrix.
        NotEnoughEvidence: no token counts.

    Cost: the text through every model up to the last site, and per model one product of [tokens, d] and [d, latents].
    Caveat: a latent of one model's own is a statement about this crosscoder; train it again from other seeds.
    """
    _refuse_unless_over(crosscoder, models)
    first = next(iter(models.values()))
    whole = first.tokens(text)
    scales = _scales(crosscoder)
    tally = _Tally.of(crosscoder, scales, n_units=len(whole))
    for units, values in _pieces(crosscoder, models, whole, batch_size):
        codes = crosscoder.encode_sparse(values)
        tally.add(units, values=values, output=crosscoder.decode(codes).reshape(len(values), -1), codes=codes)
    if not tally.n_tokens:
        raise NotEnoughEvidence(
            "There is no token to compare models on.",
            got=f"{len(whole)} prompts",
            because="all their tokens are padding or special",
            instead="longer prompts",
        )
    estimator = Estimator(len(whole))
    figures = {label: sums.figures(estimator) for label, sums in tally.sums.items()}
    return ModelComparison(
        labels=tuple(tally.sums),
        norms=np.stack([rows.norm(dim=1).numpy() for rows in tally.rows.values()]),
        presence=tally.presence(),
        cosine=_smallest_cosine(tally.rows),
        density=next(iter(tally.sums.values())).density(),
        fvu={label: one["fvu"] for label, one in figures.items()},
        l0=next(iter(figures.values()))["l0"],
        n_tokens=tally.n_tokens,
        settings={"bos": whole.bos, "skips_special": crosscoder.settings.source.skips_special},
        dictionary=crosscoder.settings.to_json(),
        data_sha256=hash_tensors({"ids": whole.ids, "n_pad": whole.n_pad}),
    )


@dataclass
class _Tally:
    """Running sums, by model where they differ; all that is compared is in units of each model's root mean square.

    Args:
        columns: Which columns of the long vectors are whose.
        scales: What turns raw values of a column into those units.
        rows: Decoder rows, [latent, d].
        sums: For FVU and density, of raw values.
        power: Sum of each latent's squared codes.
        along: Sum of code x error along the latent's strongest decoder; None where widths differ.
    """

    columns: dict[str, slice]
    scales: Tensor
    rows: dict[str, Tensor]
    sums: dict[str, Sums]
    power: Tensor
    along: dict[str, Tensor] | None

    @classmethod
    def of(cls, crosscoder: Dictionary, scales: Tensor, *, n_units: int) -> "_Tally":
        columns, n = _columns(crosscoder), crosscoder.n_latents
        rows = crosscoder.decoder_rows().detach().to("cpu", torch.float64)
        if not crosscoder.settings.normalization.is_pending:
            rows = rows * scales
        widths = {label: one.stop - one.start for label, one in columns.items()}
        has_one_width = len(set(widths.values())) == 1
        return cls(
            columns=columns,
            scales=scales,
            rows={label: rows[:, one] for label, one in columns.items()},
            sums={
                label: Sums.empty(n_units=n_units, d_out=width, n_latents=n)
                for label, width in widths.items()
            },
            power=torch.zeros(n, dtype=torch.float64),
            along={label: torch.zeros(n, dtype=torch.float64) for label in columns}
            if has_one_width
            else None,
        )

    @property
    def n_tokens(self) -> int:
        return next(iter(self.sums.values())).n_tokens

    @property
    def strongest(self) -> Tensor:
        """Each latent's decoder in the model where it is longest, [latent, d]."""
        rows = torch.stack(list(self.rows.values()))
        return rows[rows.norm(dim=2).argmax(0), torch.arange(rows.shape[1])]

    def add(self, units: Tensor, *, values: Tensor, output: Tensor, codes: SparseCodes) -> None:
        """Count some tokens."""
        for label, mine in self.columns.items():
            self.sums[label].add(units, target=values[:, mine], output=output[:, mine], codes=codes)
        if self.along is None:
            return
        dense = codes.to_dense().to("cpu", torch.float64)
        self.power += dense.square().sum(0)
        error = (values.to("cpu", torch.float64) - output.to("cpu", torch.float64)) * self.scales
        strongest = self.strongest
        for label, mine in self.columns.items():
            self.along[label] += (dense * (error[:, mine] @ strongest.T)).sum(0)

    def presence(self) -> np.ndarray:
        """Least squares of what the other latents leave of a model's values, on code x strongest decoder."""
        if self.along is None:
            return np.full((len(self.rows), len(self.power)), np.nan)
        strongest = self.strongest
        size = self.power * strongest.square().sum(1)
        own = {label: self.power * (rows * strongest).sum(1) for label, rows in self.rows.items()}
        return torch.stack([(self.along[label] + own[label]) / size for label in self.rows]).numpy()


def _pieces(
    crosscoder: Dictionary, models: Mapping[str, Model], whole: TokenBatch, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompt of each token that counts, and the values that the crosscoder reads there."""
    first = next(iter(models.values()))
    skips, start = crosscoder.settings.source.skips_special, 0
    for batch in batches(first, whole, batch_size=batch_size):
        counts = counted(first, batch, skips_special=skips)
        units = start + counts.nonzero(as_tuple=True)[0]
        start += len(batch)
        if not len(units):
            continue
        parts = []
        for label in labels_of(crosscoder.settings.reads):
            sites = [port.site for port in crosscoder.settings.reads if port.model == label]
            parts.append(flat_values(models[label], batch, sites=sites, counts=counts, units=units))
        yield units, torch.cat([part.to(parts[0]) for part in parts], dim=1)


def _columns(crosscoder: Dictionary) -> dict[str, slice]:
    """Columns of each model, whose ports stand together."""
    found: dict[str, slice] = {}
    start = 0
    for port in crosscoder.settings.writes:
        begun = found.get(port.model, slice(start, start))
        found[port.model] = slice(begun.start, start + port.width)
        start += port.width
    return found


def _scales(crosscoder: Dictionary) -> Tensor:
    """What turns raw values into those that training saw, for each column."""
    scale = crosscoder.tensors.get("in_scale")
    one = torch.ones(crosscoder.settings.d_out, dtype=torch.float64)
    return one if scale is None else one * scale.detach().to("cpu", torch.float64)


def _smallest_cosine(rows: Mapping[str, Tensor]) -> np.ndarray:
    if len({one.shape for one in rows.values()}) > 1:
        return np.full(len(next(iter(rows.values()))), np.nan)
    pairs = [torch.cosine_similarity(one, other, dim=1) for one, other in combinations(rows.values(), 2)]
    return torch.stack(pairs).amin(0).numpy()


def _refuse_unless_over(crosscoder: Dictionary, models: Mapping[str, Model]) -> None:
    settings = crosscoder.settings
    labels = labels_of(settings.reads)
    norm, scale = settings.normalization, crosscoder.tensors.get("in_scale")
    problems = [f"it is a {crosscoder.kind}"] if crosscoder.kind != "crosscoder" else []
    problems += ["it does not write what it reads"] if settings.reads != settings.writes else []
    problems += ["its ports name no two models"] if len(labels) < 2 else []
    problems += [f"its models are {', '.join(labels)}"] if len(labels) > 1 and {*labels} != {*models} else []
    together = [port.model for port in settings.reads] == [
        label for label in labels for port in settings.reads if port.model == label
    ]
    problems += [] if together else ["the ports of a model do not stand together"]
    if norm.is_per_token or (scale is not None and scale.ndim == 2):
        problems.append("its inputs are normalised token by token, or by a matrix")
    if problems:
        raise DictionaryMismatch(
            "Models are compared by a crosscoder that reads and writes each of them.",
            got=f"{crosscoder!r} for {', '.join(models)}",
            because="; ".join(problems),
            instead='train_across({"base": ..., "tuned": ...}, ...), or open(path, model="base,tuned")',
        )
    refuse_other_tokenizers(models)
    for label in labels:
        ports = tuple(replace(port, model="") for port in settings.reads if port.model == label)
        refuse_unless_fits(replace(settings, reads=ports, writes=ports), models[label])
