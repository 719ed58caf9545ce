// The processes of a Mixture-of-Experts block, one header each:
//
//   memory -> read_tokens -> router -> select -> dispatch -> load_up, load_down (weights of experts that have tokens)
//                  \____________________________________\-> product_up -> product_down -> combine -> write_tokens -> memory
//
// A block with a residual normalises its tokens first and adds them at the end: measure_tokens, normalize_tokens and
// fork_tokens are where read_tokens is, and add_residual stands in front of write_tokens.
//
// Each is a template over the configuration of a layer (block_config.h of a generated project) and is called once in a
// DATAFLOW region. Every channel has one producer and one consumer, every array belongs to one process.
#ifndef MOEC_BLOCK_H
#define MOEC_BLOCK_H
#include "moec_combine.h"
#include "moec_dispatch.h"
#include "moec_normalize.h"
#include "moec_product_down.h"
#include "moec_product_up.h"
#include "moec_residual.h"
#include "moec_router.h"
#include "moec_select.h"
#include "moec_tokens.h"
#include "moec_weights.h"
#endif
