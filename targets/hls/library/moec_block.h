// The processes of a Mixture-of-Experts block, one header each:
//
//   read_tokens -> split_tokens -> router -> select -> dispatch -> load_up, load_down (experts that have tokens)
//                       \____________________________\-> product_up -> product_down -> combine -> pack_tokens -> write_tokens
//
// A block with a residual normalises its tokens first and adds them at the end: read_stream, measure_tokens,
// normalize_tokens and fork_tokens are where read_tokens and split_tokens are; add_residual stands in front of pack_tokens.
//
// Each is a template over the configuration of a layer (block_config.h of a generated project) and is called once in a
// DATAFLOW region. Every channel has one producer and one consumer, every array belongs to one process.
#ifndef MOEC_BLOCK_H
#define MOEC_BLOCK_H
#include "moec_combine.h"
#include "moec_dispatch.h"
#include "moec_memory.h"
#include "moec_normalize.h"
#include "moec_product_down.h"
#include "moec_product_up.h"
#include "moec_router.h"
#include "moec_select.h"
#include "moec_tokens.h"
#include "moec_weights.h"
#endif
