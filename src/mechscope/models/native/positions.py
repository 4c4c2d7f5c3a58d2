"""Where a token is: position ids and rotary tables.

Owns: the two ways in which a native model learns of positions besides a learned table.
Invariant: nothing here is stored; tables are computed from position ids at each call, in float32
    (float64 for float64 models), so that no buffer can disagree with the config.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.models.native.config import NativeConfig


def count_positions(
    attention_mask: Tensor | None, *, n_rows: int, n_past: int, n_new: int, device: torch.device
) -> Int[Tensor, "batch n_new"]:
    """Number the new tokens of each row, padding not counted.

    A two-dimensional mask says where the padding is, so a left-padded row gets the positions that
    it would have alone. Without one, rows are taken to be unpadded.
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -n_new:].to(device)
    return torch.arange(n_past, n_past + n_new, device=device).expand(n_rows, -1)


def rotary_tables(
    config: NativeConfig, position_ids: Int[Tensor, "batch pos"], *, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch pos rotary_dim"], Float[Tensor, "batch pos rotary_dim"]]:
    """Cosines and sines of each position's angles, laid out as `rotate` reads them."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    n_angles = config.rotary_dim // 2
    exponents = torch.arange(n_angles, dtype=wide, device=position_ids.device) / n_angles
    angles = position_ids[..., None].to(wide) / config.rotary_base**exponents
    if config.rotary_adjacent_pairs:
        angles = angles.repeat_interleave(2, dim=-1)
    else:
        angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "batch head pos d_head"],
    tables: tuple[Float[Tensor, "batch pos rotary_dim"], Float[Tensor, "batch pos rotary_dim"]],
    *,
    adjacent_pairs: bool,
) -> Float[Tensor, "batch head pos d_head"]:
    """Turn the first `rotary_dim` of each head by its position's angles; the rest passes."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if adjacent_pairs:
        quarter_turn = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        quarter_turn = torch.cat((-second, first), dim=-1)
    return torch.cat((turned * cos + quarter_turn * sin, passed), dim=-1)
