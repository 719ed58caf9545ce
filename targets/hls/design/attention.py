"""The hardware of an attention block in numbers.

Its two products are built like those of a MoE block with one expert. The keys, values and queries of a head are hidden
tiles of the first product; a head's weighted values are a tile of the second.
"""

from __future__ import annotations

import dataclasses

from moec.targets.hls.design.numbers import (
    BEAT_BYTES,
    INPUT_BITS,
    MOST_ACCUMULATOR_BITS,
    PARAMETER_BYTES,
    RESULT_BITS,
    Fifos,
    Norm,
    bits_for,
    depth_beside,
    padded,
)

KEY, VALUE, QUERY = range(3)
"""Kinds of tiles in the order of computation. For a head of keys, there is one tile of keys, one of values, and then
one of queries for each head that shares them, since a query needs the keys first."""


@dataclasses.dataclass(frozen=True)
class LatentShape:
    """Channels of the latents that rows of heads are computed from. ``queries``: 0 if queries are products of tokens;
    ``keys``: of keys and values; ``shared``: not normalised, the same for all heads of keys. ``tokens``: whether rows
    also take tokens, which then come before all latents."""

    queries: int
    keys: int
    shared: int
    tokens: bool

    @property
    def ranks(self) -> list[int]:
        """The channels of each latent that exists, in the order of the columns."""
        return [rank for rank in (self.queries, self.keys, self.shared) if rank]

    @property
    def keys_take_tokens(self) -> bool:
        """Whether keys may also take tokens; they do not if they take shared channels."""
        return self.tokens and not self.shared

    @property
    def norm_width(self) -> int:
        """Channels of the wider of the normalised latents."""
        return max(self.queries, self.keys)


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """The shape of an attention layer. Sizes are those of the model, before padding.

    - ``tokens``: the most per call. Without a cache a call is a whole sequence; with one, it continues a sequence.
    - ``cached``: positions that the cache of keys and values has room for; 0 without a cache.
    - ``sharing``: heads of queries that share a head of keys and values.
    - ``causal``: a token attends to tokens up to itself; ``windowed``: to as many of the last ones as its layer says.
    - ``sinks``: each head has an attention sink, a score next to those of its keys.
    - ``turned``: queries and keys get rotary embeddings; ``head_norm``: and a normalisation before that, head by head,
      or, with ``joint_norm``, of all heads of a token together.
    - ``latents``: the latents that keys, values and queries are products of; None if they are products of tokens.
    """

    tokens: int
    width: int
    heads: int
    head_width: int
    norm: Norm
    sharing: int = 1
    causal: bool = False
    turned: bool = False
    head_norm: bool = False
    joint_norm: bool = False
    cached: int = 0
    windowed: bool = False
    sinks: bool = False
    latents: LatentShape | None = None

    @property
    def key_heads(self) -> int:
        return self.heads // self.sharing

    @property
    def positions(self) -> int:
        """The most keys that a query attends to."""
        return self.cached or self.tokens

    @property
    def tiles(self) -> int:
        """Tiles of the first product: the keys, values and queries of all heads."""
        return self.key_heads * (2 + self.sharing)

    @property
    def turned_tiles(self) -> int:
        """Tiles of keys and queries, which get rotary embeddings."""
        return self.key_heads * (1 + self.sharing)

    @property
    def norm_width(self) -> int:
        """Channels of keys and queries that are normalised together."""
        return self.heads * self.head_width if self.joint_norm else self.head_width

    def parts_of_tiles(self) -> list[int]:
        """The kind of each tile of the first product, in the order of computation: head by head, or, if all heads are
        normalised together, keys and queries of all heads first, then values."""
        part_by_head = [KEY, VALUE, *[QUERY] * self.sharing]
        if not self.joint_norm:
            return part_by_head * self.key_heads
        return [part for part in part_by_head if part != VALUE] * self.key_heads + [VALUE] * self.key_heads


@dataclasses.dataclass(frozen=True)
class AttentionDesign:
    """One way to build a block. Each of its four arrays computes ``lanes`` x ``lanes`` products per cycle;
    ``norm_lanes`` channels are normalised per cycle."""

    shape: AttentionShape
    lanes: int = 16
    norm_lanes: int = 8
    fifos: Fifos = dataclasses.field(default_factory=Fifos)

    @property
    def width(self) -> int:
        """Channels of a token, padded."""
        return padded(self.shape.width, self.lanes)

    @property
    def head_width(self) -> int:
        """Channels of a head, padded."""
        return padded(self.shape.head_width, self.lanes)

    @property
    def hidden(self) -> int:
        """Channels of all heads, padded."""
        return self.shape.heads * self.head_width

    @property
    def chunks(self) -> int:
        """Steps through a row of a head."""
        return self.head_width // self.lanes

    @property
    def width_chunks(self) -> int:
        """Steps through a token."""
        return self.width // self.lanes

    @property
    def latent_chunks(self) -> tuple[int, int, int]:
        """Steps through the latents of queries, of keys, and through the shared channels, each padded on its own."""
        latents = self.shape.latents
        ranks = (0, 0, 0) if latents is None else (latents.queries, latents.keys, latents.shared)
        queries, keys, shared = (-(-rank // self.lanes) for rank in ranks)
        return queries, keys, shared

    @property
    def latent_tiles(self) -> int:
        """Tiles of the product that computes latents, each as wide as a head's rows."""
        return -(-sum(self.latent_chunks) // self.chunks)

    @property
    def row_chunks(self) -> int:
        """Steps through the inputs of rows: a token, latents, or both."""
        latents = self.shape.latents
        return sum(self.latent_chunks) + (self.width_chunks if latents is None or latents.tokens else 0)

    def steps_of(self, part: int) -> range:
        """The steps of :attr:`row_chunks` that a tile of keys, values or queries takes."""
        latents = self.shape.latents
        if latents is None:
            return range(self.width_chunks)
        queries, keys, _ = self.latent_chunks
        tokens = self.width_chunks if latents.tokens else 0
        if part == QUERY:
            return range(tokens, tokens + queries) if queries else range(tokens)
        first = tokens + queries
        if part == VALUE:
            return range(first, first + keys)
        return range(0 if latents.keys_take_tokens else first, self.row_chunks)

    @property
    def most_steps(self) -> int:
        """The most steps that a tile of any kind takes."""
        return max(len(self.steps_of(part)) for part in (KEY, VALUE, QUERY))

    @property
    def latent_norm_beats(self) -> int:
        """Beats of the multipliers of normalised latents, 16 bits each."""
        queries, keys, _ = self.latent_chunks
        return -(-RESULT_BITS // 8 * (queries + keys) * self.lanes // BEAT_BYTES)

    def row_cycles(self, part: int) -> int:
        """Cycles in which the first array computes a token of a tile of this kind."""
        return self.chunks * len(self.steps_of(part))

    def row_tile_beats(self, part: int) -> int:
        """Beats of the weights and parameters of a tile of the first product."""
        weights = len(self.steps_of(part)) * self.lanes * self.head_width // BEAT_BYTES
        return weights + -(-self.head_width * PARAMETER_BYTES // BEAT_BYTES)

    @property
    def item_cycles(self) -> int:
        """Cycles in which an array computes a token of a tile with as many channels as a token."""
        return self.chunks * self.width_chunks

    @property
    def steps_depth(self) -> int:
        """Words of the channel of tokens to be normalised, which wait until their sums are complete."""
        return max(self.fifos.tokens, depth_beside(1))

    @property
    def turn_beats(self) -> int:
        """Beats of the rotary embedding of one position: a number of 16 bits per channel of a head."""
        return -(-RESULT_BITS // 8 * self.head_width // BEAT_BYTES)

    @property
    def sink_beats(self) -> int:
        """Beats of the sinks of all heads, 4 bytes each."""
        return -(-4 * self.shape.heads // BEAT_BYTES)

    @property
    def cache_row_beats(self) -> int:
        """Beats of the keys, or of the values, of a token and a head in the cache."""
        return -(-INPUT_BITS // 8 * self.head_width // BEAT_BYTES)

    @property
    def cache_beats(self) -> int:
        """Beats of all keys, or of all values, in the cache."""
        return self.shape.key_heads * self.shape.cached * self.cache_row_beats

    @property
    def measured_rows_depth(self) -> int:
        """Words of the channel of rows to be normalised, which wait while their sums become factors."""
        return max(self.fifos.rows, depth_beside(1, self.chunks - 1))

    @property
    def kept_chunks(self) -> int:
        """Chunks of the keys and queries of all heads, which wait for the sum of squares if heads are normalised
        together."""
        return self.shape.turned_tiles * self.shape.tokens * self.chunks

    @property
    def items_split_depth(self) -> int:
        """Words of the channel of tokens to the process that splits rows into heads, which takes each with its first
        row."""
        least = min(self.row_cycles(part) for part in (KEY, VALUE, QUERY))
        return max(self.fifos.items, depth_beside(least, self.most_steps - 1))

    @property
    def items_keep_depth(self) -> int:
        """Words of the channel of tokens to the process that stores latents, which takes each with its first ones."""
        return max(self.fifos.items, depth_beside(self.item_cycles, self.width_chunks - 1))

    @property
    def measured_latents_depth(self) -> int:
        """Words of the channel of latents to be normalised, which wait while their sums become factors."""
        queries, keys, _ = self.latent_chunks
        return max(self.fifos.rows, depth_beside(1, max(queries, keys) - 1))

    @property
    def items_end_depth(self) -> int:
        """Words of the channel of tokens after the second product, each of which is taken with its first results."""
        return max(self.fifos.items, depth_beside(self.item_cycles, self.chunks - 1))

    @property
    def key_weights_depth(self) -> int:
        """Words of the channel of keys' weights, which fills while the divider computes the reciprocal of their sum."""
        return depth_beside(1)

    @property
    def reciprocals_depth(self) -> int:
        """Words of the channel of reciprocals, each of which waits for its query's weighted values."""
        return depth_beside(self.chunks)

    @property
    def key_groups(self) -> int:
        """Groups of ``lanes`` keys, which are scored at the same time."""
        return -(-self.shape.positions // self.lanes)

    @property
    def mixed_bits(self) -> int:
        """Bits of the sum of values times 8-bit weights over all keys."""
        return 16 + bits_for(self.shape.positions)

    @property
    def score_bits(self) -> int:
        """Bits of the product of two rows of int8."""
        return 16 + bits_for(self.head_width)

    def why_not(self, widest_sum: int = 0) -> str | None:
        """The reason why the templates cannot be instantiated with these numbers; None if they can. ``widest_sum``: the
        bits that the products' sums need."""
        if self.lanes not in (8, 16, 32):
            return f"{self.lanes} lanes; expected 8, 16 or 32, so that a chunk of results fits into a beat"
        if self.lanes**2 % BEAT_BYTES or self.lanes % self.norm_lanes:
            return f"{self.norm_lanes} channels per cycle do not divide {self.lanes} lanes"
        if widest_sum > MOST_ACCUMULATOR_BITS:
            return f"sums need {widest_sum} bits; a multiplier of the requantisation takes {MOST_ACCUMULATOR_BITS}"
        is_whole = self.shape.turned or not (self.shape.head_norm or self.shape.sinks)
        if self.shape.heads % self.shape.sharing or not is_whole or self.shape.joint_norm > self.shape.head_norm:
            return f"{self.shape.heads} heads, {self.shape.sharing} of which share keys; expected whole groups"
        if self.shape.windowed and not self.shape.causal:
            return "windows of tokens that see those behind them"
        if self.shape.cached and not (self.shape.causal and self.shape.tokens <= self.shape.cached <= 65535):
            return f"a cache of {self.shape.cached} positions for calls of {self.shape.tokens} tokens"
        if not 0 < self.shape.tokens <= 65535 or not 0 < self.shape.width <= 8192:
            return f"{self.shape.tokens} tokens of {self.shape.width} channels; there are up to 65535 of up to 8192"
        return None
