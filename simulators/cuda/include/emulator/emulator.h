// All of the emulator, in the order in which its parts build on one another.
#pragma once
#include "asynchronous.h"
#include "barriers.h"
#include "bits.h"
#include "block_scaled.h"
#include "call.h"
#include "cooperative_groups.h"
#include "launch.h"
#include "mathematics.h"
#include "matrix.h"
#include "memory.h"
#include "recorder.h"
#include "registers.h"
#include "shared_window.h"
#include "tensor_product.h"
#include "tensor_scales.h"
#include "tensor_transfers.h"
#include "vectors.h"
#include "warp_votes.h"

// A word that the standard library spells the same, so it comes last.
#define __noinline__ __attribute__((noinline))
