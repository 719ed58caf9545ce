// Titles of the levels of a kernel.
const TITLES = { onnx: "ONNX nodes", operators: "Operators", tir: "TIR", llvm: "LLVM", asm: "Assembly", cuda: "CUDA C", ptx: "PTX", sass: "SASS", hls: "HLS C++" };

export function levelTitle(level) {
  return TITLES[level] ?? level;
}
