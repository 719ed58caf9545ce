"""Recurrences over a sequence, as modules of transformers have them, written without a loop over its length.

torch.export unrolls loops, so that a loop over tokens would fix the length. Linear attention is an operator of ONNX
(:mod:`moec.frontend.pytorch.linear_attention`). Any other loop applies an affine map to its state at each step. Such
maps can be composed in any order: prefixes by doubling (Hillis and Steele, "Data parallel algorithms", 1986) take as
many rounds as the length has bits.

Functions have the signatures of the functions of transformers that they replace. Those that begin from a state let the
first step write it.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from moec.frontend.pytorch.linear_attention import linear_attention

if TYPE_CHECKING:
    import torch

_ROUNDS = 18
"""Rounds of doubling: prefixes reach back over 2^18 tokens, and longer sequences are refused."""
_LONGEST = 1 << _ROUNDS
_inputs_before: contextvars.ContextVar[tuple[torch.Tensor, int] | None] = contextvars.ContextVar(
    "inputs_before", default=None
)
_state_before: contextvars.ContextVar[torch.Tensor | None] = contextvars.ContextVar("state_before", default=None)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Linear attention by the gated delta rule, ``torch_chunk_gated_delta_rule`` and ``chunk_kimi_delta_attention``.

    ``query`` and ``key`` [B,T,h,K], ``value`` [B,T,H,V], H a multiple of h; ``g`` [B,T,H], or [B,T,H,K] with a decay
    for each channel, is the logarithm of the state's decay; ``beta`` [B,T,H]. Returns [B,T,H,V], and the state
    [B,H,K,V] where it is asked for.
    """
    repeats = value.shape[2] // key.shape[2]
    if repeats > 1:
        query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
    if use_qk_l2norm_in_kernel:
        query, key = _normalized(query.float()), _normalized(key.float())
    result, after = linear_attention(query, key, value, g, beta, query.shape[-1] ** -0.5, initial_state)
    return result.to(value.dtype), after if output_final_state else None


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mamba's selective scan, ``mamba_selective_scan``; it begins from the state of :func:`mixer_with_state`.

    ``hidden_states``, ``dt`` and ``z`` [B,d,T]; ``A`` [d,n]; ``B`` and ``C`` [B,n,T]; ``D`` and ``delta_bias`` [d].
    Returns [B,d,T], and the state [B,d,n] where it is asked for.
    """
    import torch

    _checked_length(dt.shape[2])
    if delta_bias is not None:
        dt = dt + delta_bias[:, None]
    if delta_softplus:
        dt = torch.nn.functional.softplus(dt)
    decays = (A[None, :, None, :] * dt[..., None]).exp()
    written = dt[..., None] * B.transpose(1, 2)[:, None] * hidden_states[..., None]
    initial = _state_before.get()
    states = _prefixes(decays, _from(initial, decays, written))
    result = (states * C.transpose(1, 2)[:, None]).sum(-1)
    if D is not None:
        result = result + hidden_states * D[:, None]
    result = result if z is None else result * torch.nn.functional.silu(z)
    return (result, states[:, :, -1]) if return_last_state else result


def mixer_with_state(self: Any, *arguments: Any, cache: Any = None, **named: Any) -> torch.Tensor:
    """The forward of a Mamba layer. Its scan begins from the cache's state, which transformers does not pass to it."""
    token = _state_before.set(None if cache is None else cache.get_recurrent_state(self.layer_idx))
    try:
        return type(self).forward(self, *arguments, cache=cache, **named)
    finally:
        _state_before.reset(token)


def chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mamba 2's scan, ``mamba2_chunk_scan``.

    ``hidden_states`` [B,T,H,P], ``dt`` [B,T,H]; ``A``, ``D`` and ``dt_bias`` [H]; ``B`` and ``C`` [B,T,g,n], H a
    multiple of g. Returns [B,T,H,P], and the state [B,H,P,n] where it is asked for.
    """
    import torch

    heads = hidden_states.shape[2]
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = torch.nn.functional.softplus(dt)
    dt = dt.clamp(*dt_limit).float().unsqueeze(-1)
    key, query = (part.repeat_interleave(heads // part.shape[2], dim=2) for part in (B, C))
    initial = None if initial_states is None else initial_states.transpose(-1, -2)
    decay = (A.float()[:, None] * dt).squeeze(-1)
    result, after = linear_attention(query, key, hidden_states.float() * dt, decay, None, 1.0, initial)
    result = result if D is None else result + hidden_states.float() * D[:, None]
    return (result, after.transpose(-1, -2)) if return_final_states else result


def lightning_attention(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: Any,
    attention_mask: torch.Tensor | None,
    cache: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward of ``MiniMaxLightningAttention``: linear attention whose state decays by a constant of the head.

    ``hidden_states`` [B,T,d]. Returns the output [B,T,d] and the state [B,H,h,h].
    """
    import torch

    batch, length = hidden_states.shape[:2]
    projected = self.act_fn(self.qkv_proj(hidden_states))
    if attention_mask is not None:
        projected = projected * attention_mask[:, :, None].to(projected.dtype)
    projected = projected.reshape(batch, length, self.num_attention_heads, 3 * self.head_dim)
    query, key, value = projected.split(self.head_dim, dim=3)
    decay = -self.slope_rate[:, 0, 0] * torch.ones_like(query[..., 0])
    # The cache is empty before the first token.
    initial = None if cache is None or self.layer_idx >= len(cache) else cache.get_linear_cache(self.layer_idx)
    result, after = linear_attention(query, key, value, decay, None, 1.0, initial)
    if cache is not None:
        cache.set_linear_cache(self.layer_idx, after)
    joined = result.reshape(batch, length, self.num_attention_heads * self.head_dim)
    gated = torch.nn.functional.sigmoid(self.output_gate(hidden_states)) * self.norm(joined)
    return self.out_proj(gated), after


def behind(before: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Append inputs of new tokens to the first n, cached ones of a causal convolution. Returns [B,d,n+T]."""
    import torch

    seen = torch.cat([before, new], dim=-1)
    _inputs_before.set((seen, before.shape[-1]))
    return seen


def causal_convolution(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    """Convolve each channel over the inputs up to a token, ``causal_conv1d_fn``: ``hidden_states`` [B,d,T], ``weight``
    [d,K].

    For inputs of :func:`behind` it returns the results of the new tokens alone. transformers computes all and keeps
    ``[-length:]``, which would keep all for a length of 0.
    """
    import torch
    from transformers.activations import ACT2FN

    width, length = weight.shape[-1] - 1, hidden_states.shape[-1]
    joined, count = _inputs_before.get() or (None, 0)
    is_behind = joined is hidden_states and count >= width
    inputs = (hidden_states[..., count - width :] if is_behind else hidden_states).to(weight.dtype)
    options: dict[str, Any] = {"weight": weight.unsqueeze(1), "bias": bias, "groups": hidden_states.shape[1]}
    result = torch.nn.functional.conv1d(inputs, padding=0 if is_behind else width, **options)
    result = result if is_behind else result[:, :, :length]
    return (result if activation is None else ACT2FN[activation](result)).to(hidden_states.dtype)


def tokens_before(self: Any, token_ids: torch.Tensor, shift: int) -> torch.Tensor:
    """``_shift_right_ignore_eos`` of ``Qwen4ExpTextNGramEmbedding``: the ids [B,T] of the tokens ``shift`` places
    earlier. The end-of-text id stands where an end lies between, or where there is no such token."""
    import torch

    place = torch.arange(token_ids.shape[1])
    ids, is_known = token_ids, place >= shift
    for back in range(1, shift + 1):
        ids = token_ids.index_select(1, (place - back).clamp(min=0))
        is_known = is_known & (ids != self.eos_token_id)
    return torch.where(is_known, ids, self.eos_token_id)


def _checked_length(length: int) -> int:
    import torch

    torch._check(length <= _LONGEST)
    return length


def _normalized(rows: torch.Tensor) -> torch.Tensor:
    return rows * ((rows * rows).sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


def _from(initial: torch.Tensor | None, kept: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Let the first step write the initial state, decayed, in addition to its own contribution."""
    import torch

    if initial is None:
        return written
    first = kept[:, :, :1] * initial.float().unsqueeze(2) + written[:, :, :1]
    return torch.where(_is_first(written), first, written)


def _is_first(steps: torch.Tensor) -> torch.Tensor:
    """Whether a step (axis 2) is the first, in a shape that broadcasts with ``steps``."""
    import torch

    return (torch.arange(steps.shape[2]) == 0).reshape(-1, *(1,) * (steps.dim() - 3))


def _prefixes(kept: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Compute the states after each step (axis 2), starting from zero."""
    by = 1
    while by < _LONGEST:
        written = kept * _earlier(written, by) + written
        kept = kept * _earlier(kept, by)  # zero before the first step, where the state is zero, too
        by *= 2
    return written


def _earlier(steps: torch.Tensor, by: int) -> torch.Tensor:
    """Shift entries by ``by`` places to later ones along axis 2, with zeros at the beginning."""
    import torch

    place = torch.arange(steps.shape[2]) - by
    moved = steps.index_select(2, place.clamp(min=0))
    return torch.where((place >= 0).reshape(-1, *(1,) * (steps.dim() - 3)), moved, 0.0)
