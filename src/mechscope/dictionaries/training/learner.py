"""Learner: one dictionary while it is trained: its tensors, its running numbers, its optimiser, one step.

Weights lie with one row a latent (`enc.i`, `dec.i`), as the sparse products read them; the dictionary that comes
out sees them as W_enc and W_dec. Nothing in a step waits for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechscope.dictionaries.architectures.base import View, sizes_by_site
from mechscope.dictionaries.blocks import Block, Weights, shapes_of
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.kernels.active import Encoder, wants_bfloat16
from mechscope.dictionaries.normalizing import normalized, out_statistics, times
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings, Source
from mechscope.dictionaries.training.objective import Outcome, compute_outcome
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.engine.harvest.aligned import SiteOf
from mechscope.records.seeds import seed_for
from mechscope.vocabulary.sites import Site


@dataclass
class Moment:
    """Where in the run a step is."""

    step: int
    n_steps: int

    @property
    def done(self) -> float:
        return self.step / max(1, self.n_steps)


class Learner:
    """A dictionary in training.

    Args:
        job: What to train.
        training: How.
        shapes: What each site carries at one position.
        device: Where.
        dtype: Of weights and optimiser state.
    """

    def __init__(
        self,
        job: Job,
        training: Training,
        *,
        shapes: Mapping[Site, tuple[int, ...]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.job, self.training = job, training
        self.settings = settings_for(job, training, shapes)
        self.device, self.dtype = torch.device(device), dtype
        self.blocks = Weights(self.settings, {}).blocks
        self.policy = training.decoder_norm or job.config.decoder_norm
        self.params = self._initial()
        self.state: dict[str, Tensor] = {
            "since_fired": torch.zeros(self.settings.n_latents, device=self.device),
            "is_bad": torch.zeros((), dtype=torch.bool, device=self.device),
        }
        for block in self.blocks:
            own = job.config.own_buffers(self._encoder_weight(block.index))
            self.state |= {f"{name}.{block.index}": value for name, value in own.items()}
        self.dead = torch.zeros(0, dtype=torch.long, device=self.device)
        self.optimizer = torch.optim.Adam(
            [{"params": list(self.params.values())}],
            lr=1.0,
            betas=training.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )

    def calibrate(self, values: Mapping[Site, Tensor]) -> None:
        """Set input statistics, the first `b_dec` and what the architecture needs, from some tokens."""
        reads, writes = (self._gathered(values, side) for side in (self.job.reads, self.job.targets))
        statistics = self._statistics(reads, "in", self.settings.reads)
        if self.settings.reads != self.settings.writes:
            statistics |= self._statistics(writes, "out", self.settings.writes)
        self.state |= statistics
        _x, y = self.normalized(values)
        with torch.no_grad():
            self.params["b_dec"].copy_(y.mean(0))
            for view in self.views(_x, Moment(0, 1)):
                self.job.config.prepare(view)

    def normalized(self, values: Mapping[Site, Tensor]) -> tuple[Tensor, Tensor]:
        """Values read and written as the weights take them: [token, d_in] and [token, d_out]."""
        x = normalized(self._gathered(values, self.job.reads), self.settings, self.state)
        if self.settings.reads == self.settings.writes:
            return x, x
        y = self._gathered(values, self.job.targets)
        mean, scale = out_statistics(self.settings, self.state)
        return x, times(y if mean is None else y - mean, scale)

    def step(self, values: Mapping[Site, Tensor], moment: Moment) -> Outcome:
        """One step of the optimiser on one batch."""
        x, y = self.normalized(values)
        self.optimizer.zero_grad(set_to_none=True)
        outcome = compute_outcome(self, x, y, moment)
        outcome.loss.backward()
        rate = self.training.rate_for(self.settings.n_latents)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.training.schedule.rate(moment.step, moment.n_steps)
        with torch.no_grad():
            self._before_update()
            self.optimizer.step()
            self._after_update()
            self.state["is_bad"] |= ~outcome.loss.detach().isfinite()
        return outcome

    def views(self, x: Tensor, moment: Moment) -> list[View]:
        """What the architecture sees of each block."""
        shift = self.params["b_dec"] if self.settings.applies_b_dec_to_input else None
        bfloat16 = wants_bfloat16(self.training.precision, self.device, self.dtype)
        views: list[View] = []
        for block in self.blocks:
            end = f".{block.index}"
            encoder = Encoder(
                x[:, block.read],
                self._encoder_weight(block.index),
                self.params.get(f"b_enc{end}"),
                shift,
                uses_bfloat16=bfloat16,
                is_sparse=self.training.is_sparse,
            )
            views.append(
                View(
                    encoder=encoder,
                    decoder=self.params[f"dec{end}"],
                    tensors=_of_block(self.params, end),
                    buffers=_of_block(self.state, end),
                    pressure=self.training.schedule.pressure(moment.step, moment.n_steps),
                    looseness=self.training.schedule.looseness(moment.step, moment.n_steps),
                    done=moment.done,
                    widths=self.widths,
                )
            )
        return views

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of each site that a crosscoder writes; empty where a row is one vector."""
        writes = self.settings.writes
        is_one = len(writes) == 1 or self.settings.is_cross_layer
        return () if is_one else tuple(port.width for port in writes)

    def keep_buffers(self, view: View, index: int) -> None:
        """Take over running numbers that an architecture changed."""
        self.state |= {f"{name}.{index}": value for name, value in view.buffers.items()}

    def look_for_dead(self) -> None:
        """Find who is dead, and let the architecture bring them near. Waits for the device."""
        is_dead = self.state["since_fired"] >= self.training.revival.dead_after_tokens
        self.dead = is_dead.nonzero()[:, 0]
        for block in self.blocks if len(self.dead) else ():
            mine = is_dead[block.latents]
            if not mine.all():
                self.job.config.revive(_of_block(self.params, f".{block.index}"), mine)

    def dead_in(self, block: Block) -> Tensor:
        """The dead latents of a block, counted from its first."""
        if len(self.blocks) == 1:
            return self.dead
        mine = (self.dead >= block.latents.start) & (self.dead < block.latents.stop)
        return self.dead[mine] - block.latents.start

    def dictionary(self, source: Source | None = None) -> Dictionary:
        """The dictionary as it is now, its tensors shared."""
        config, settings = self.job.config, self.settings
        tensors: dict[str, Tensor] = {}
        own: dict[str, list[Tensor]] = {}
        for block in self.blocks:
            trained = {k: v.detach() for k, v in _of_block(self.params, f".{block.index}").items()}
            decoder, encoder = trained.pop("dec"), trained.pop("enc", None)
            if encoder is not None:
                own.setdefault("W_enc", []).append(encoder.T)
            if settings.is_cross_layer:
                assert block.sites is not None
                tensors[f"W_dec.{block.index}"] = decoder.unflatten(1, (len(block.sites), -1))
            else:
                tensors["W_dec"] = decoder
            buffers = _of_block(self.state, f".{block.index}")
            sizes = sizes_by_site(decoder, self.widths)
            for name, value in config.finished(trained, buffers, sizes).items():
                own.setdefault(name, []).append(value)
        tensors |= {
            k: torch.stack(v) if k == "W_enc" and len(v) > 1 else torch.cat(v, -1) for k, v in own.items()
        }
        tensors["b_dec"] = self.params["b_dec"].detach()
        if settings.has_skip:
            tensors["W_skip"] = self.params["W_skip"].detach()
        tensors |= {name: self.state[name] for name in STATISTICS if name in self.state}
        shaped = {name: value.reshape(_shape(name, value, settings)) for name, value in tensors.items()}
        if source is not None:
            settings = replace(settings, source=source)
        return Dictionary(settings, shaped)

    def _initial(self) -> dict[str, Tensor]:
        settings, config = self.settings, self.job.config
        params: dict[str, Tensor] = {}
        for block in self.blocks:
            generator = torch.Generator().manual_seed(seed_for(self.training.seed, "dictionary", block.index))
            n = block.latents.stop - block.latents.start
            d_in = block.read.stop - block.read.start
            d_out = settings.d_out if block.sites is None else len(block.sites) * settings.writes[0].width
            decoder = _drawn_decoder(n, d_out, settings.writes, generator, self.dtype)
            same = settings.reads == settings.writes and not settings.is_cross_layer
            encoder = (
                decoder.clone()
                if same
                else _unit_rows(torch.randn(n, d_in, generator=generator, dtype=self.dtype))
            )
            own = {"dec": decoder}
            if not config.ties_encoder:
                own["enc"] = encoder
            if config.has_encoder_bias:
                own["b_enc"] = torch.zeros(n, dtype=self.dtype)
            own |= config.own_tensors(encoder)
            params |= {f"{name}.{block.index}": value for name, value in own.items()}
        params["b_dec"] = torch.zeros(settings.d_out, dtype=self.dtype)
        if settings.has_skip:
            params["W_skip"] = torch.zeros(settings.d_out, settings.d_in, dtype=self.dtype)
        return {name: value.to(self.device).requires_grad_() for name, value in params.items()}

    def _encoder_weight(self, index: int) -> Tensor:
        return self.params.get(f"enc.{index}", self.params[f"dec.{index}"])

    def _gathered(self, values: Mapping[Site, Tensor], sites: tuple[Site, ...]) -> Tensor:
        parts = [values[site].to(self.device, self.dtype) for site in sites]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _statistics(self, values: Tensor, side: str, ports: tuple[Port, ...]) -> dict[str, Tensor]:
        if self.settings.normalization.rule == "none":
            return {}
        found: dict[str, Tensor] = {}
        if (
            self.training.normalization == "standardize"
            or side == "out"
            or self.settings.reads != self.settings.writes
        ):
            found[f"{side}_mean"] = values.mean(0)
            values = values - found[f"{side}_mean"]
        widths = [port.width for port in ports]
        rms = [part.pow(2).mean().sqrt() for part in values.split(widths, dim=1)]
        scales = [1 / value.clamp_min(torch.finfo(self.dtype).tiny) for value in rms]
        one = torch.cat([scale.expand(width) for scale, width in zip(scales, widths, strict=True)])
        found[f"{side}_scale"] = scales[0] if len(scales) == 1 else one
        return found

    def _before_update(self) -> None:
        if self.policy != "unit":
            return
        for block in self.blocks:
            rows = self.params[f"dec.{block.index}"]
            if rows.grad is not None:  # what would change a row's length is taken out
                along = torch.einsum("fd,fd->f", rows.grad, rows)
                rows.grad.addcmul_(along[:, None].expand_as(rows), rows, value=-1)

    def _after_update(self) -> None:
        for block in self.blocks:
            end = f".{block.index}"
            if self.policy == "unit":
                rows = self.params[f"dec{end}"]
                rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12))
            self.job.config.after_step(_of_block(self.params, end))


STATISTICS = ("in_mean", "in_scale", "out_mean", "out_scale")


def settings_for(job: Job, training: Training, shapes: Mapping[Site, tuple[int, ...]]) -> Settings:
    """Settings of the dictionary that a job will give."""
    reads, writes = (tuple(_port(site, shapes[site]) for site in side) for side in (job.reads, job.targets))
    n = job.config.width * (len(reads) if job.is_cross_layer else 1)
    rule = "none" if training.normalization == "none" else "affine"
    gate: Gate = job.config.gate()
    return Settings(
        reads=reads,
        writes=writes,
        n_latents=n,
        gate=gate,
        normalization=Normalization(rule=rule),
        applies_b_dec_to_input=reads == writes and not job.is_cross_layer,
        has_skip=job.has_skip,
        is_cross_layer=job.is_cross_layer,
        targets=tuple(tuple(range(i, len(writes))) for i in range(len(reads))) if job.is_cross_layer else (),
        prefixes=() if job.is_cross_layer else job.config.prefixes,
    )


def _port(site: Site, shape: tuple[int, ...]) -> Port:
    if isinstance(site, SiteOf):
        return Port(site=site.bare, shape=tuple(shape), model=site.model)
    return Port(site=site, shape=tuple(shape))


def _drawn_decoder(
    n: int, d_out: int, ports: tuple[Port, ...], generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Random rows; the same for each of several models, so that no latent begins as one model's own."""
    widths: dict[str, list[int]] = {}
    for port in ports:
        widths.setdefault(port.model, []).append(port.width)
    first, *others = widths.values()
    if not others or any(other != first for other in others):
        return _unit_rows(torch.randn(n, d_out, generator=generator, dtype=dtype))
    return _unit_rows(torch.randn(n, sum(first), generator=generator, dtype=dtype).repeat(1, len(widths)))


def _of_block(tensors: Mapping[str, Tensor], end: str) -> dict[str, Tensor]:
    return {name.removesuffix(end): value for name, value in tensors.items() if name.endswith(end)}


def _unit_rows(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _shape(name: str, value: Tensor, settings: Settings) -> tuple[int, ...]:
    return shapes_of(settings).get(name, tuple(value.shape))
