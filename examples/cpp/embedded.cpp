// Runs a network that is linked into the program: no file is loaded.
//
//   tvmsep export net.tvmsep --format object -o net.o
//   tvmsep export net.tvmsep --format header -o net.h
//   python examples/cpp/build.py examples/cpp/embedded.cpp net.o -I. -o embedded
//   ./embedded THREADS < input.f32 > output.f32
//
// Reads the first input's raw values and writes the first output's. What is linked was trusted when
// the program was: no hash is checked.
#include <cstdio>

#include "net.h"
#include "tvmsep.hpp"

int main(int count, char** words) try {
  std::string_view about(_binary_net_manifest_json_start,
                         _binary_net_manifest_json_end - _binary_net_manifest_json_start);
  std::string_view weights(_binary_net_weights_safetensors_start,
                           _binary_net_weights_safetensors_end - _binary_net_weights_safetensors_start);
  tvmsep::set_threads(count > 1 ? std::atoi(words[1]) : 1);
  auto library = tvmsep::call(tvmsep::global("ffi.SystemLib"), NET_PREFIX).cast<tvm::ffi::Module>();
  tvmsep::Network net(library, tvmsep::parse(about), tvmsep::weights(weights));
  auto input = net.inputs.at(0).make();
  if (std::fread(input.data_ptr(), 1, NET_INPUT0_BYTES, stdin) != NET_INPUT0_BYTES)
    tvmsep::fail("standard input holds less than " NET_INPUT0_NAME);
  auto output = net({input}).at(0);
  if (std::fwrite(output.data_ptr(), 1, NET_OUTPUT0_BYTES, stdout) != NET_OUTPUT0_BYTES)
    tvmsep::fail("standard output is closed");
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
