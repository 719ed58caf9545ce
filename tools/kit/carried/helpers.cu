// Kernels of the kit itself, plain on purpose: they make numbers, and compute what fast kernels are compared with.

// A number that looks random, from a place and a seed.
static __device__ unsigned mixed(unsigned long long place, unsigned seed) {
  unsigned long long x = place + 0x9E3779B97F4A7C15ull * (seed + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return (unsigned)(x >> 32 ^ x);
}

static __device__ float from_bfloat16(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

static __device__ unsigned short to_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  return (unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The nearest float16 of a normal number.
static __device__ unsigned short to_float16(float value) {
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7FFFFFFF;
  const unsigned sign = bits >> 16 & 0x8000;
  if (magnitude < 0x38800000) return (unsigned short)sign;
  return (unsigned short)(sign | ((magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13));
}

// Numbers with mean 0 and the given standard deviation: sums of four bytes. `width`: bytes of a number.
extern "C" __global__ void __launch_bounds__(256) kit_fill(void* out, long long count, int width, int seed, float scale,
                                                           int half) {
  const long long step = (long long)gridDim.x * 256;
  for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < count; i += step) {
    const unsigned bits = mixed(i, seed);
    const int sum = (int)(bits & 255) + (int)(bits >> 8 & 255) + (int)(bits >> 16 & 255) + (int)(bits >> 24);
    const float value = (float)(sum - 510) * (scale / 147.8f);
    if (width == 4) ((float*)out)[i] = value;
    if (width == 2) ((unsigned short*)out)[i] = half ? to_float16(value) : to_bfloat16(value);
    if (width == 1) ((unsigned char*)out)[i] = (unsigned char)bits;
  }
}

// hidden[p, u] = silu(x[token of p] @ gate[u]) * (x[token of p] @ up[u]) of chosen pairs, in float32. Rows of `matrix`
// [E, 2 f, d] are 8 of the gate, then the 8 of up that belong to them.
extern "C" __global__ void __launch_bounds__(256) kit_hidden(const unsigned short* x, const unsigned short* matrix,
                                                             const int* chosen, const int* pairs, float* hidden,
                                                             int count, int slots, int d, int f) {
  const int place = (int)(blockIdx.x * 256 + threadIdx.x);
  if (place >= count * f) return;
  const int pair = pairs[place / f], unit = place % f;
  const unsigned short* row = x + (long long)(pair / slots) * d;
  const unsigned short* gate = matrix + ((long long)chosen[pair] * 2 * f + unit / 8 * 16 + unit % 8) * d;
  const unsigned short* up = gate + 8 * (long long)d;
  float gate_sum = 0, up_sum = 0;
  for (int i = 0; i < d; ++i) {
    gate_sum += from_bfloat16(row[i]) * from_bfloat16(gate[i]);
    up_sum += from_bfloat16(row[i]) * from_bfloat16(up[i]);
  }
  hidden[place] = gate_sum / (1 + expf(-gate_sum)) * up_sum;
}

// y[t, c] = sum of weight * (hidden[pair] @ down[column c]) over the slots of chosen tokens and columns, in float32.
// `pairs` are all slots of these tokens, token by token.
extern "C" __global__ void __launch_bounds__(256) kit_outputs(const float* hidden, const unsigned short* matrix,
                                                              const int* chosen, const unsigned short* weights,
                                                              const int* pairs, const int* columns, float* y, int tokens,
                                                              int count, int slots, int d, int f) {
  const int place = (int)(blockIdx.x * 256 + threadIdx.x);
  if (place >= tokens * count) return;
  const int token = place / count, column = columns[place % count];
  float sum = 0;
  for (int slot = 0; slot < slots; ++slot) {
    const int at = token * slots + slot, pair = pairs[at];
    const unsigned short* row = matrix + ((long long)chosen[pair] * d + column) * f;
    float product = 0;
    for (int i = 0; i < f; ++i) product += hidden[(long long)at * f + i] * from_bfloat16(row[i]);
    sum += from_bfloat16(weights[pair]) * product;
  }
  y[place] = sum;
}
