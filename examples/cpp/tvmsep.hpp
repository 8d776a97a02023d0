// Runs tvmsep bundles without Python, on TVM's runtime library alone.
//
// Beside the C++ library and POSIX it needs the headers and libraries inside the wheels of
// apache-tvm and apache-tvm-ffi; build.py finds them. Every member's SHA-256 is checked, the
// bundle's signature is not: check that where bundles arrive, before this program sees them, with
// `tvmsep verify --signature KEY` or with openssl (SECURITY.md). Everything throws std::exception.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

// The type information of ffi::Error stays in this program: TVM's libraries, which may have another
// C++ library, would use it for their own exceptions and crash.
#pragma push_macro("TVM_FFI_DLL")
#undef TVM_FFI_DLL
#define TVM_FFI_DLL __attribute__((visibility("hidden")))
#include <tvm/ffi/error.h>
#pragma pop_macro("TVM_FFI_DLL")
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace tvmsep {
namespace ffi = tvm::ffi;
using Object = ffi::Map<ffi::Any, ffi::Any>;
using Array = ffi::Array<ffi::Any>;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline ffi::Function global(const char* name) { return ffi::Function::GetGlobalRequired(name); }

// Calls through TVM's C interface, across which no C++ exception passes: this program and TVM's
// libraries may have different C++ libraries.
inline ffi::Any call_packed(const ffi::Function& function, std::vector<ffi::AnyView> arguments) {
  ffi::Any result;
  auto handle = const_cast<ffi::FunctionObj*>(function.get());
  if (!TVMFFIFunctionCall(handle, reinterpret_cast<TVMFFIAny*>(arguments.data()), arguments.size(),
                          reinterpret_cast<TVMFFIAny*>(&result)))
    return result;
  TVMFFIObjectHandle error = nullptr;
  TVMFFIErrorMoveFromRaised(&error);
  if (!error) fail("TVM failed without a word");
  auto message = TVMFFIErrorGetCellPtr(error)->message;
  std::string text(message.data, message.size);
  TVMFFIObjectDecRef(error);
  fail(text);
}

template <typename... Arguments>
ffi::Any call(const ffi::Function& function, const Arguments&... arguments) {
  return call_packed(function, {ffi::AnyView(arguments)...});
}

// A function of a module.
inline ffi::Function member(const ffi::Module& module, const char* name) {
  auto found = call(global("ffi.ModuleGetFunction"), module, name, true).as<ffi::Function>();
  if (!found) fail(std::string("the library has no function ") + name);
  return *found;
}

template <typename T>
T get(const Object& object, const char* key) {
  auto value = object.Get(ffi::String(key));
  if (!value) fail(std::string("the manifest has no ") + key);
  return value->cast<T>();
}

inline Object parse(std::string_view text) {
  auto value = call(global("ffi.json.Parse"), ffi::String(text.data(), text.size())).as<Object>();
  if (!value) fail("a description is no JSON object");
  return *value;
}

// SHA-256 (FIPS 180-4) in hexadecimal.
inline std::string sha256(std::string_view data) {
  auto root = [](uint64_t n, int power) {  // first 32 bits of the fractional part of a root
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 36, whole = n;
    while (high - low > 1) {
      auto x = (low + high) / 2;
      bool over = power == 2 ? x * x > whole << 64 : x * x * x > whole << 96;
      (over ? high : low) = x;
    }
    return (uint32_t)low;
  };
  uint32_t k[64], h[8];
  for (int n = 0, p = 2; n < 64; p++) {
    bool prime = true;
    for (int d = 2; d * d <= p; d++) prime = prime && p % d;
    if (!prime) continue;
    if (n < 8) h[n] = root(p, 2);
    k[n++] = root(p, 3);
  }
  auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  auto block = [&](const unsigned char* at) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
      w[i] = at[4 * i] << 24 | at[4 * i + 1] << 16 | at[4 * i + 2] << 8 | at[4 * i + 3];
    for (int i = 16; i < 64; i++)
      w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
      uint32_t a = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                   ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      uint32_t b = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                   ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      std::memmove(s + 1, s, 7 * sizeof *s);
      s[4] += a, s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
  };
  auto bytes = reinterpret_cast<const unsigned char*>(data.data());
  size_t whole = data.size() / 64 * 64;
  for (size_t i = 0; i < whole; i += 64) block(bytes + i);
  std::vector<unsigned char> rest(bytes + whole, bytes + data.size());
  rest.push_back(0x80);
  while (rest.size() % 64 != 56) rest.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) rest.push_back((uint64_t)data.size() * 8 >> shift);
  for (size_t i = 0; i < rest.size(); i += 64) block(rest.data() + i);
  std::string text;
  for (uint32_t word : h)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

// A tensor on 64-byte aligned memory, on huge pages where it is large.
inline ffi::Tensor empty(const std::vector<int64_t>& shape, DLDataType dtype) {
  struct Memory {
    void AllocData(DLTensor* t) {
      size_t huge = 2 << 20, size = ffi::GetDataSize(*t), unit = size < huge ? 64 : huge;
      t->data = std::aligned_alloc(unit, (size / unit + 1) * unit);
      if (!t->data) throw std::bad_alloc();
      if (unit == huge) madvise(t->data, size, MADV_HUGEPAGE);
    }
    void FreeData(DLTensor* t) { std::free(t->data); }
  };
  ffi::ShapeView view(shape.data(), shape.size());
  return ffi::Tensor::FromNDAlloc(Memory(), view, dtype, DLDevice{kDLCPU, 0});
}

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;
  DLDataType dtype;
  ffi::Tensor make() const { return empty(shape, dtype); }
};

inline std::vector<TensorInfo> tensors(const Array& list) {
  std::vector<TensorInfo> found;
  for (const auto& item : list) {
    auto entry = item.cast<Object>();
    TensorInfo t{get<std::string>(entry, "name"), {}, {}};
    for (const auto& dim : get<Array>(entry, "shape")) t.shape.push_back(dim.cast<int64_t>());
    t.dtype = ffi::StringToDLDataType(get<ffi::String>(entry, "dtype"));
    found.push_back(t);
  }
  return found;
}

// A part of a larger tensor, which lives as long as its parts do.
struct Part {
  ffi::Tensor whole;
  size_t at;
  void AllocData(DLTensor* t) { t->data = static_cast<char*>(whole.data_ptr()) + at; }
  void FreeData(DLTensor*) {}
};

// Weights by name from the bytes of a safetensors file, copied to one piece of memory: on huge pages
// all together.
inline std::map<std::string, ffi::Tensor> weights(std::string_view data) {
  uint64_t size = 0;
  if (data.size() >= 8) std::memcpy(&size, data.data(), 8);
  if (data.size() < 8 || size > data.size() - 8) fail("the weights are cut short");
  std::string_view body = data.substr(8 + size);
  std::map<std::string, ffi::Tensor> found;
  auto entries = parse(data.substr(8, size));
  const int64_t room = body.size() + 64 * entries.size();
  ffi::Tensor arena = empty({room}, DLDataType{kDLUInt, 8, 1});
  uint64_t at = 0;
  for (const auto& [name, item] : entries) {
    if (name.cast<std::string>() == "__metadata__") continue;
    auto entry = item.cast<Object>();
    std::string code = get<std::string>(entry, "dtype");
    int bits = code == "BOOL" ? 8 : std::atoi(code.c_str() + 1);
    int kind = code == "BOOL" ? kDLBool : code[0] == 'F' ? kDLFloat : code[0] == 'U' ? kDLUInt : kDLInt;
    std::vector<int64_t> shape;
    for (const auto& dim : get<Array>(entry, "shape")) shape.push_back(dim.cast<int64_t>());
    ffi::ShapeView view(shape.data(), shape.size());
    DLDataType dtype{(uint8_t)kind, (uint8_t)bits, 1};
    auto tensor = ffi::Tensor::FromNDAlloc(Part{arena, at}, view, dtype, DLDevice{kDLCPU, 0});
    auto place = get<Array>(entry, "data_offsets");
    uint64_t begin = place[0].cast<int64_t>(), end = place[1].cast<int64_t>();
    size_t bytes = ffi::GetDataSize(tensor);
    if (begin > end || end > body.size() || end - begin != bytes) fail("a weight lies elsewhere");
    if (at + bytes > (uint64_t)room) fail("weights lie on each other");
    at += (bytes + 63) / 64 * 64;
    std::memcpy(tensor.data_ptr(), body.data() + begin, bytes);
    found.emplace(name.cast<std::string>(), tensor);
  }
  return found;
}

// A bundle file: its members, each compared with the SHA-256 in the manifest.
class Bundle {
 public:
  Object manifest;

  explicit Bundle(const std::string& path) {
    int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about = {};
    if (file < 0 || fstat(file, &about) || about.st_size < 22) fail(path + " cannot be read");
    void* at = mmap(nullptr, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (at == MAP_FAILED) fail(path + " cannot be mapped");
    size_t size = about.st_size;
    map_ = std::shared_ptr<void>(at, [size](void* p) { munmap(p, size); });
    file_ = {static_cast<const char*>(at), size};
    list(path);
    if (!members_.count("manifest.json")) fail(path + " has no manifest");
    manifest = parse(members_["manifest.json"]);
    int64_t format = get<int64_t>(manifest, "format");
    if (format != 1 && format != 2) fail(path + " has another bundle format: build it again");
    auto hashes = get<Object>(manifest, "members");
    if (hashes.size() + 1 != members_.size()) fail(path + " and its manifest differ");
    for (const auto& [name, hash] : hashes)
      if (sha256(member(name.cast<std::string>())) != hash.cast<std::string>())
        fail(path + " was damaged: the SHA-256 of " + name.cast<std::string>() + " is wrong");
    check_host(path);
  }

  std::string_view member(const std::string& name) const {
    auto found = members_.find(name);
    if (found == members_.end()) fail("the bundle has no member " + name);
    return found->second;
  }

 private:
  std::shared_ptr<void> map_;
  std::string_view file_;
  std::map<std::string, std::string_view> members_;

  uint64_t number(uint64_t at, int bytes) const {
    if (at + bytes > file_.size()) fail("the bundle is cut short");
    uint64_t value = 0;
    for (int i = bytes; i--;) value = value << 8 | (unsigned char)file_[at + i];
    return value;
  }

  // Reads the directory at the end of the zip; members are stored and have no extra fields.
  void list(const std::string& path) {
    uint64_t end = file_.size() - 22, at = number(end + 16, 4);
    if (number(end, 4) != 0x06054b50) fail(path + " is no bundle, or is cut short");
    for (uint64_t left = number(end + 10, 2); left--;) {
      uint64_t size = number(at + 24, 4), length = number(at + 28, 2), local = number(at + 42, 4);
      uint64_t data = local + 30 + length;
      if (number(at, 4) != 0x02014b50 || number(at + 10, 2) || number(at + 20, 4) != size ||
          number(at + 30, 4) || at + 46 + length > file_.size() || data + size > file_.size() ||
          number(local, 4) != 0x04034b50 || number(local + 28, 2))
        fail(path + " is damaged, or was not written by tvmsep");
      std::string name(file_.substr(at + 46, length));
      if (!members_.emplace(name, file_.substr(data, size)).second) fail(path + " has " + name + " twice");
      at += 46 + length;
    }
  }

  void check_host(const std::string& path) const {
    auto target = get<Object>(manifest, "target");
    if (auto gpu = target.Get(ffi::String("gpu")); gpu && gpu->as<Object>())
      fail(path + " is for a CUDA device, and this program runs on CPUs: load it from Python");
    std::ifstream file("/proc/cpuinfo");
    std::stringstream text;
    text << file.rdbuf();
    std::string cpu = " " + text.str(), missing, vendor = get<std::string>(target, "vendor");
    for (char& c : cpu) c = std::isspace((unsigned char)c) ? ' ' : c;
    for (const auto& flag : get<Array>(target, "requires"))
      if (cpu.find(" " + flag.cast<std::string>() + " ") == std::string::npos)
        missing += " " + flag.cast<std::string>();
    if (!vendor.empty() && cpu.find(vendor) == std::string::npos) missing += " " + vendor;
    if (!missing.empty()) fail(path + " cannot run on this CPU, which lacks" + missing);
    auto tvm = get<std::string>(manifest, "tvm");
    if (tvm != TVMSEP_TVM_VERSION)
      fail(path + " needs TVM " + tvm + ", this program has " TVMSEP_TVM_VERSION);
  }
};

// For a network without threads of its own (`embedded.cpp`): gives the calling thread, which must be
// new to TVM, a pool of `threads`, and pins it where it has a CPU for each.
inline void set_threads(int threads) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) fail("the CPUs cannot be listed");
  std::vector<int> cpus;
  for (int i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &allowed)) cpus.push_back(i);
  ffi::Array<ffi::String> spread, all;
  for (int i = 0; i < threads; i++) spread.push_back(std::to_string(cpus[i % cpus.size()]));
  for (int cpu : cpus) all.push_back(std::to_string(cpu));
  auto configure = global("runtime.config_threadpool");
  call(configure, -2, threads, spread);
  if (1 < threads && threads < (int)cpus.size()) call(configure, -3, threads, all);
  if (1 < threads && threads == (int)cpus.size()) {
    CPU_ZERO(&allowed);
    CPU_SET(cpus[0], &allowed);
  }
  sched_setaffinity(0, sizeof allowed, &allowed);
}

// A network on its weights. One thread at a time may call it.
class Network {
 public:
  std::vector<TensorInfo> inputs, outputs;

  Network(ffi::Module library, const Object& about, std::map<std::string, ffi::Tensor> pool)
      : inputs(tensors(get<Array>(about, "inputs"))), outputs(tensors(get<Array>(about, "outputs"))) {
    auto vm = call(tvmsep::member(library, "vm_load_executable")).cast<ffi::Module>();
    call(tvmsep::member(vm, "vm_initialization"), (int)kDLCPU, 0, 2);
    std::vector<ffi::AnyView> arguments = {"main", "tvmsep_bound", 1};
    auto names = get<Array>(about, "weights");
    auto arity = call(tvmsep::member(vm, "get_function_arity"), "main").cast<int64_t>();
    if (arity != (int64_t)(inputs.size() + names.size())) fail("the library takes other parameters");
    for (const auto& name : names) arguments.push_back(pool.at(name.cast<std::string>()));
    call_packed(tvmsep::member(vm, "save_function"), arguments);
    library_ = library, vm_ = vm;
    main_ = tvmsep::member(vm, "tvmsep_bound");
  }

  std::vector<ffi::Tensor> operator()(const std::vector<ffi::Tensor>& given) const {
    ffi::Any result = call_packed(main_, {given.begin(), given.end()});
    if (auto one = result.as<ffi::Tensor>()) return {*one};
    std::vector<ffi::Tensor> several;
    for (const auto& item : result.cast<Array>()) several.push_back(item.cast<ffi::Tensor>());
    return several;
  }

  // Starts the threads that the library has of its own, which end with the network.
  void start(int threads) {
    auto set = tvmsep::member(library_.cast<ffi::Module>(), "tvmsep_threads");
    call(set, threads);
    threads_ = std::shared_ptr<void>(nullptr, [set](void*) { call(set, 0); });
  }

 private:
  ffi::Any library_, vm_;
  ffi::Function main_;
  std::shared_ptr<void> threads_;  // goes first: the library must not be unloaded under them
};

// What a bundle says of each set of input shapes that it has the network for, the first one first:
// inputs, outputs, variants, weights.
inline std::vector<Object> specialisations(const Bundle& bundle) {
  std::vector<Object> found = {bundle.manifest};
  if (auto further = bundle.manifest.Get(ffi::String("further")))
    for (const auto& item : further->cast<Array>()) found.push_back(item.cast<Object>());
  return found;
}

// The network of a bundle for one set of its input shapes.
inline Network load(const Bundle& bundle, int threads, size_t which = 0) {
  Object about = specialisations(bundle).at(which);
  ffi::Optional<Object> best;
  for (const auto& item : get<Array>(about, "variants")) {
    auto variant = item.cast<Object>();
    if (!best || get<int64_t>(variant, "threads") <= threads) best = variant;
  }
  std::string folder = std::filesystem::temp_directory_path() / "tvmsep-XXXXXX";
  if (!mkdtemp(folder.data())) fail("cannot make a folder in TMPDIR");
  std::string path = folder + "/net.so";
  auto bytes = bundle.member(get<std::string>(*best, "library"));
  bool written = (bool)std::ofstream(path).write(bytes.data(), bytes.size()).flush();
  ffi::Any module;
  try {
    if (written) module = call(global("ffi.ModuleLoadFromFile"), path);
  } catch (...) {
    std::filesystem::remove_all(folder);
    throw;
  }
  std::filesystem::remove_all(folder);
  if (!written) fail("cannot write " + path);
  Network network(module.cast<ffi::Module>(), about, weights(bundle.member("weights.safetensors")));
  network.start(threads);
  return network;
}
}  // namespace tvmsep
