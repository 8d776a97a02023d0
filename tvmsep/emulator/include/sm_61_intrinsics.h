// Products of packed bytes, which TVM includes for 8-bit types; see tvmsep_cuda.h.
#pragma once

inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += (signed char)(a >> i) * (signed char)(b >> i);
  return c;
}
