// tcgen05.mma: products of operands in shared memory, whose sums lie in tensor memory, and tcgen05.commit.
//
// One thread issues both. What it issues completes in order, at the latest when no thread of the cluster can go on; a
// commit then arrives at an mbarrier. Until then nobody may write the operands, or read the sums.
#pragma once
#include "shared_operand.h"
#include "tensor_memory.h"

namespace emulator {

enum class TensorKind { f16, tf32, f8f6f4 };

// Each block of a group has a share of the rows of A and of the columns of B, at the same places of its shared memory,
// and the sums of its rows.
struct TensorProduct {
  void (*carry_out)(const TensorProduct&);
  int group;
  OperandLayout a, b;
  int rows, columns, row_bytes;
  int lane;             // of the first sum
  TensorRegion region;  // of the sums, in each block
  bool adds;
};

// A product; a commit where it has none.
struct TensorOperation {
  const Thread* owner;
  Access issued;
  TensorProduct product;
  std::vector<uint32_t> barriers;  // of a commit: in the cluster
  Released before;                 // what its owner had done: see order.h
};

// `disabled`: lanes whose sums are to stay as they are. `a`: a descriptor; the one of an A in tensor memory is shorter.
void issue_tensor_product(TensorKind kind, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t disabled, bool adds);

template <class A>
void multiply_in_tensor_memory(TensorKind kind, int group, uint32_t sums, A a, uint64_t b, uint32_t instruction,
                               uint32_t disabled, bool adds) {
  static_assert(sizeof(A) == 8, "tcgen05.mma: the emulator has no model of an A that lies in tensor memory");
  issue_tensor_product(kind, group, sums, a, b, instruction, disabled, adds);
}

// Arrives at an mbarrier when all that this thread has issued is complete.
void commit_tensor_products(int group, uint32_t barrier);

// The same at the mbarrier of each block of the cluster whose bit is set.
void commit_tensor_products_to(int group, uint32_t barrier, uint32_t blocks);

// The oldest operation that a thread of this block has issued, or any thread's where the order is drawn.
bool complete_tensor_operation();

}  // namespace emulator
