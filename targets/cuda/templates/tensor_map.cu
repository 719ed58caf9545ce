
// A description of the tensor for the accelerator that copies (TMA), as the driver makes it.
static CUtensorMap encode_tensor_map(const Tensor& tensor, CUtensorMapDataType type, std::vector<cuuint64_t> extents,
                                     std::vector<cuuint64_t> strides, std::vector<cuuint32_t> box,
                                     std::vector<cuuint32_t> steps, int interleave, int swizzle, int promotion,
                                     int fill) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status),
        "cuTensorMapEncodeTiled");
  if (status != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled; install a newer one");
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  CUtensorMap map;
  const CUresult result = encode(&map, type, cuuint32_t(extents.size()), tensor.device, extents.data(), strides.data(),
                                 box.data(), steps.data(), CUtensorMapInterleave(interleave),
                                 CUtensorMapSwizzle(swizzle), CUtensorMapL2promotion(promotion),
                                 CUtensorMapFloatOOBfill(fill));
  if (result != CUDA_SUCCESS) fail("the driver refuses to describe " + tensor.name);
  return map;
}
