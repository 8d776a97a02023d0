// Classifies a picture with a tvmsep bundle, without Python.
//
//   classify BUNDLE PICTURE [--threads N] [--runs N] [--shape 1,3,224,224]
//
// PICTURE is a binary PPM (P6, as `convert cat.jpg cat.ppm` and Pillow write it), which is resized,
// cropped and normalised as the bundle's manifest says; or raw float32 values in the input's own
// layout, as `array.tofile("input.f32")` writes them. Of a bundle of several input shapes raw values
// choose the one of their size, a picture gets the first one; --shape says which. Prints the five
// best classes, of a batch's first picture, and, with --runs, the median time of so many runs.
//
// The SHA-256 of the bundle's members is checked, its signature is not: see tvmsep.hpp.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "tvmsep.hpp"

using tvmsep::fail;
using tvmsep::get;

static std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) fail(path + " cannot be read");
  return text.str();
}

// Pixels [height][width][3], resized along one axis by a triangle filter as Pillow's BILINEAR does.
// Pillow takes the vertical pass first where a picture is over twice as tall as wide: there values
// may differ from Python's by one level of 255.
struct Picture {
  int width = 0, height = 0;
  std::vector<float> pixels;

  explicit Picture(const std::string& data) {
    int most = 0, used = 0;
    if (std::sscanf(data.c_str(), "P6 %d %d %d%n", &width, &height, &most, &used) != 3 || most != 255 ||
        width < 1 || height < 1 || data.size() - used - 1 != 3ull * width * height)
      fail("the picture is no PPM (P6, 8 bits, without comments)");
    pixels.assign((unsigned char*)data.data() + used + 1, (unsigned char*)data.data() + data.size());
  }

  void resize(int to, bool across) {
    int from = across ? width : height, lines = across ? height : width;
    int step = across ? 3 : 3 * width, line = across ? 3 * width : 3, new_line = across ? 3 * to : 3;
    int new_step = across ? 3 : 3 * width;
    std::vector<float> out((size_t)3 * to * lines);
    double scale = (double)from / to, reach = std::max(scale, 1.0);
    for (int i = 0; i < to; i++) {
      double centre = (i + 0.5) * scale, sum = 0;
      int begin = std::max(0, (int)(centre - reach + 0.5)), end = std::min(from, (int)(centre + reach + 0.5));
      std::vector<double> weight;
      for (int k = begin; k < end; k++)
        sum += weight.emplace_back(std::max(0.0, 1 - std::abs((k - centre + 0.5) * (1 / reach))));
      for (int j = 0; j < lines; j++)
        for (int c = 0; c < 3; c++) {
          int value = 1 << 21;  // fixed point with 22 bits, as Pillow has it
          for (int k = begin; k < end; k++)
            value += (int)(0.5 + weight[k - begin] * (1 / sum) * (1 << 22)) * (int)pixels[j * line + k * step + c];
          out[j * new_line + i * new_step + c] = std::clamp(value >> 22, 0, 255);
        }
    }
    pixels = out;
    (across ? width : height) = to;
  }
};

static void fill(DLTensor* input, Picture picture, const tvmsep::Object& rule) {
  auto whole = [&](const char* key) { return rule.Get(tvm::ffi::String(key)).value().as<int64_t>(); };
  if (auto side = whole("resize")) {
    int w = picture.width, h = picture.height, least = std::min(w, h);
    picture.resize(w == least ? *side : std::lrint((double)*side * w / least), true);
    picture.resize(h == least ? *side : std::lrint((double)*side * h / least), false);
  }
  int height = input->shape[2], width = input->shape[3];
  if (input->ndim != 4 || input->shape[1] != 3 || picture.width < width || picture.height < height)
    fail("the picture does not become the network's input");
  int left = std::lrint((picture.width - width) / 2.0), top = std::lrint((picture.height - height) / 2.0);
  bool bgr = get<std::string>(rule, "channel_order") == "BGR";
  for (int64_t n = 0; n < input->shape[0]; n++)
    for (int c = 0; c < 3; c++) {
      float mean = get<tvmsep::Array>(rule, "mean")[c].cast<double>();
      float std = get<tvmsep::Array>(rule, "std")[c].cast<double>(), scale = get<double>(rule, "scale");
      for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
          static_cast<float*>(input->data)[((n * 3 + c) * height + y) * width + x] =
              (picture.pixels[((y + top) * picture.width + x + left) * 3 + (bgr ? 2 - c : c)] * scale - mean) / std;
    }
}

// Which of the bundle's input shapes: the one named, else the one that raw values fill, else the first.
static size_t choose(const tvmsep::Bundle& bundle, const std::string& shape, const std::string& data) {
  std::string has;
  bool picture = data.rfind("P6", 0) == 0;
  auto several = tvmsep::specialisations(bundle);
  for (size_t at = 0; at < several.size(); at++) {
    auto inputs = tvmsep::tensors(get<tvmsep::Array>(several[at], "inputs"));
    if (inputs.size() != 1 || inputs[0].dtype != DLDataType{kDLFloat, 32, 1}) fail("not one float32 input");
    std::string text;
    size_t bytes = sizeof(float);
    for (auto dim : inputs[0].shape) text += (text.empty() ? "" : ",") + std::to_string(dim), bytes *= dim;
    if (shape.empty() ? picture || data.size() == bytes : shape == text) return at;
    has += (has.empty() ? "" : " or ") + text;
  }
  fail(shape.empty() ? "the file holds neither a P6 picture nor float32 values of shape " + has
                     : "the bundle was not built for --shape " + shape + ": it has " + has);
}

int main(int count, char** words) try {
  int threads = std::thread::hardware_concurrency(), runs = 0;
  std::string shape;
  bool known = count % 2;
  for (int i = 3; i + 1 < count; i += 2) {
    std::string option = words[i];
    if (option == "--shape")
      shape = words[i + 1];
    else if (option == "--threads" || option == "--runs")
      (option == "--threads" ? threads : runs) = std::atoi(words[i + 1]);
    else
      known = false;
  }
  if (count < 3 || threads < 1 || !known)
    fail("usage: classify BUNDLE PICTURE [--threads N] [--runs N] [--shape 1,3,224,224]\n"
         "SHA-256 sums are checked, signatures are not: tvmsep verify BUNDLE --signature KEY");
  tvmsep::Bundle bundle(words[1]);
  std::string data = read(words[2]);
  auto net = tvmsep::load(bundle, threads, choose(bundle, shape, data));
  auto input = net.inputs.at(0).make();
  if (data.rfind("P6", 0) == 0)
    fill(const_cast<DLTensor*>(input.GetDLTensorPtr()), Picture(data), get<tvmsep::Object>(bundle.manifest, "preprocess"));
  else if (data.size() == tvm::ffi::GetDataSize(input))
    std::memcpy(input.data_ptr(), data.data(), data.size());
  else
    fail(std::string(words[2]) + " holds neither a P6 picture nor the input's float32 values");
  auto output = net({input})[0];
  auto scores = static_cast<const float*>(output.data_ptr());
  std::vector<int> order(output.numel() / (output.ndim() > 1 ? output.size(0) : 1));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  auto labels = bundle.manifest.Get(tvm::ffi::String("labels")).value().as<tvmsep::Array>();
  for (size_t i = 0; i < std::min<size_t>(5, order.size()); i++)
    std::printf("%d %.6g %s\n", order[i], scores[order[i]], labels ? (*labels)[order[i]].cast<std::string>().c_str() : "");
  std::vector<double> times;
  for (int i = 0; i < runs; i++) {
    auto begin = std::chrono::steady_clock::now();
    net({input});
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  if (runs) std::printf("median of %d runs: %.3f ms\n", runs, 1e3 * times[runs / 2]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
