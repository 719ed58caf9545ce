// What one thread has the tensor core do (tcgen05.mma, tcgen05.cp), and tcgen05.commit.
//
// It completes in the order in which a thread has issued it, at the latest when no thread of the cluster can go on; a
// commit then arrives at an mbarrier. Until then nobody may write its operands, or read its results.
#pragma once
#include "shared_operand.h"
#include "tensor_memory.h"

namespace emulator {

// Rows of shared memory that work reads.
struct SharedRows {
  OperandLayout layout;
  int rows, row_bytes;
};

// Each block of a group reads and writes its share, at the same places in all.
struct TensorWork {
  void (*carry_out)(const TensorWork&);
  int group;
  uint64_t chain;                     // see begin_tensor_write
  std::vector<SharedRows> operands;   // of a product: A and B
  std::vector<TensorRegion> scales;   // of a product with block scales: those of A and of B
  TensorRegion results;
  // Of a product:
  int rows, columns;                  // of all blocks together
  int lane;                           // of the first sum
  bool adds;
  int scale_bytes[2];                 // the first in each word of scales
};

// Work; a commit where it has none.
struct TensorOperation {
  const Thread* owner;
  Access issued;
  TensorWork work;
  std::vector<uint32_t> barriers;  // of a commit: in the cluster
  Released before;                 // what its owner had done: see order.h
};

// Where an operand lies, as a 64-bit descriptor says (PTX ISA, "Shared memory descriptor"). `swizzle`: the one that the
// emulator has a model of here, as in a tensor map.
OperandLayout tensor_operand(uint64_t descriptor, uint32_t swizzle, const char* instruction);

// The name of the work of the calling thread that copies scales to tensor memory, and reads them there.
uint64_t chain_of_scales();

void issue_tensor_work(const TensorWork& work, const char* instruction);

// Arrives at an mbarrier when all that this thread has issued is complete.
void commit_tensor_work(int group, uint32_t barrier);

// The same at the mbarrier of each block of the cluster whose bit is set.
void commit_tensor_work_to(int group, uint32_t barrier, uint32_t blocks);

// The oldest operation that a thread of this block has issued, or any thread's where the order is drawn.
bool complete_tensor_operation();

}  // namespace emulator
