// The processes of an attention block, one concept per header:
//
//   read_stream -> measure_tokens -> normalize_tokens -> product_up -> split_heads -> score_keys -> weigh_keys
//      -> mix_values -> scale_values -> product_down -> pass_results -> add_residual -> pack_tokens -> write_tokens
//
// Keys, values and queries are the hidden tiles of a first product, head by head, and what heads attend to are those of
// a second one; both products and their loaders are those of a MoE block with one expert. One head's keys and values
// are on the chip at a time. Where rows of heads are products of latents, product_up makes these, and measure_latents,
// normalize_latents and product_rows stand behind it. Where positions turn keys and queries, measure_heads and turn_heads stand in front of
// score_keys; where a cache holds those of earlier tokens, join_cache stands in front of score_keys and of mix_values.
#ifndef MOEC_ATTENTION_H
#define MOEC_ATTENTION_H
#include "moec_cache.h"
#include "moec_heads.h"
#include "moec_latents.h"
#include "moec_memory.h"
#include "moec_normalize.h"
#include "moec_product_down.h"
#include "moec_product_up.h"
#include "moec_rows.h"
#include "moec_scores.h"
#include "moec_tokens.h"
#include "moec_turn.h"
#include "moec_values.h"
#include "moec_weights.h"
#endif
