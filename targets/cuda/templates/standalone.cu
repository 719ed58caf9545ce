$head
//
// This program runs the kernel once, on the numbers in $numbers, and compares what it computes with the results saved
// there, which an emulation computed:
//
//     nvcc -w -std=c++17 -gencode arch=$virtual,code=$real $program.cu -o $program && ./$program
//
// It ends with 0 where they agree, with 1 where they differ, and with 2 where it cannot run.

$preamble
$kernels
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

[[noreturn]] static void fail(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(2);
}

static void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(error));
}

// A parameter of the kernel, before and after it ran when the numbers were saved. To a kernel it is its address on the
// device.
struct Tensor {
  std::string name, type;
  size_t element_bytes = 0;
  std::vector<int64_t> shape;
  std::vector<char> before, after;
  void* device = nullptr;

  template <class Element>
  operator Element*() const {
    return static_cast<Element*>(device);
  }
};

// The file: a line for each tensor (name, type, bytes of an element, rank, sizes), an empty line, and then the elements
// of each tensor before and after.
static std::vector<Tensor> read_tensors(const char* path) {
  FILE* file = std::fopen(path, "rb");
  if (!file) fail(std::string(path) + " cannot be read");
  std::vector<Tensor> tensors;
  char name[256], type[32];
  unsigned long long bytes, rank;
  while (std::fscanf(file, "%255[^ \n] %31s %llu %llu", name, type, &bytes, &rank) == 4) {
    Tensor tensor{name, type, size_t(bytes)};
    size_t count = 1;
    for (; rank > 0; --rank) {
      long long size;
      if (std::fscanf(file, "%lld", &size) != 1) fail(std::string(path) + " is damaged");
      tensor.shape.push_back(size);
      count *= size_t(size);
    }
    std::fgetc(file);  // the end of the line
    tensor.before.resize(count * tensor.element_bytes);
    tensor.after.resize(count * tensor.element_bytes);
    tensors.push_back(tensor);
  }
  std::fgetc(file);
  for (Tensor& tensor : tensors)
    for (std::vector<char>* elements : {&tensor.before, &tensor.after})
      if (std::fread(elements->data(), 1, elements->size(), file) != elements->size())
        fail(std::string(path) + " ends too early");
  std::fclose(file);
  return tensors;
}

static void copy_to_device(Tensor& tensor) {
  check(cudaMalloc(&tensor.device, tensor.before.size() + 1), "cudaMalloc");  // an empty tensor has an address, too
  check(cudaMemcpy(tensor.device, tensor.before.data(), tensor.before.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
}

static double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  return bits >> 15 ? -value : value;
}

// How far two elements may differ, as a share of the largest that was computed; 0 for types that are compared bit by
// bit.
static double tolerance_of(const std::string& type) {
  return type == "float32" ? 1e-4 : type == "float16" ? 4e-3 : type == "bfloat16" ? 3e-2 : 0;
}

static double element(const Tensor& tensor, const char* at) {
  uint32_t bits = 0;
  std::memcpy(&bits, at, tensor.element_bytes < 4 ? tensor.element_bytes : 4);
  if (tensor.type == "float16") return from_half(uint16_t(bits));
  if (tensor.type == "bfloat16") bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Whether the tensor on the device is what was saved; prints the largest difference.
static bool compare(const Tensor& tensor) {
  std::vector<char> found(tensor.after.size());
  check(cudaMemcpy(found.data(), tensor.device, found.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  const double tolerance = tolerance_of(tensor.type);
  double largest = 0, difference = 0;
  size_t wrong_bits = 0;
  for (size_t at = 0; at < found.size(); at += tensor.element_bytes) {
    const char *a = found.data() + at, *b = tensor.after.data() + at;
    const bool same = std::memcmp(a, b, tensor.element_bytes) == 0;
    if (tolerance == 0) {
      wrong_bits += !same;
      continue;
    }
    const double expected = element(tensor, b);
    const bool computed = std::memcmp(tensor.before.data() + at, b, tensor.element_bytes) != 0;
    if (computed && std::isfinite(expected)) largest = std::fmax(largest, std::fabs(expected));
    if (same) continue;  // also two that are not a number
    const double apart = std::fabs(element(tensor, a) - expected);
    difference = std::fmax(difference, std::isnan(apart) ? INFINITY : apart);
  }
  const bool agrees = wrong_bits == 0 && difference <= tolerance * largest;
  if (tolerance == 0)
    std::printf("%s: %zu elements differ", tensor.name.c_str(), wrong_bits);
  else
    std::printf("%s: largest difference %g; the largest value computed is %g", tensor.name.c_str(), difference, largest);
  std::printf("%s\n", agrees ? "" : ", DIFFERS");
  return agrees;
}
$encode
int main(int count, char** arguments) {
  std::vector<Tensor> tensors = read_tensors(count > 1 ? arguments[1] : "$numbers");
  if (tensors.size() != $parameters) fail("expected the numbers of $parameters tensors");
  for (Tensor& tensor : tensors) copy_to_device(tensor);
$launches
  check(cudaDeviceSynchronize(), "the kernel");
  bool agrees = true;
  for (const Tensor& tensor : tensors) agrees &= compare(tensor);
  return agrees ? 0 : 1;
}
