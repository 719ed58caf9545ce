// What every translation unit includes first, compiled once for all projects. Builds with other options than the usual
// ones do without it, so they also check what is replaced here.
#include <ap_int.h>

#include <deque>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

// Two int8 products in one multiplier, the product that arrays are made of: ap_int.h computes all that has more than 32
// bits in memory from malloc, and simulations would spend half of their time there. 35 bits hold every such product.
template <>
inline ap_int_base<27, true>::RType<8, true>::mult operator*(const ap_int_base<27, true>& pair,
                                                             const ap_int_base<8, true>& input) {
    return pair.to_int64() * input.to_int64();
}
