#include "facts.h"

#include <dirent.h>
#include <gnu/libc-version.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

namespace tvmsep {
namespace {

const std::string CPUS = "/sys/devices/system/cpu/cpu";

#if defined(__aarch64__)
const char MACHINE[] = "aarch64";
const struct { int bit; const char* name; } CAPS[] = {
    {0, "fp"}, {1, "asimd"}, {8, "atomics"}, {9, "fphp"}, {10, "asimdhp"}, {20, "asimddp"}, {22, "sve"}};
#elif defined(__arm__)
const char MACHINE[] = "armv7l";  // of this program: the kernel may be a 64-bit one
const struct { int bit; const char* name; } CAPS[] = {
    {6, "vfp"}, {12, "neon"}, {13, "vfpv3"}, {16, "vfpv4"}, {17, "idiva"}, {18, "idivt"}};
#elif defined(__x86_64__)
const char MACHINE[] = "x86_64";
const struct { int bit; const char* name; } CAPS[] = {};
#elif defined(__riscv)
const char MACHINE[] = "riscv64";
const struct { int bit; const char* name; } CAPS[] = {};
#else
#error unknown machine: name it here, as `uname -m` does
#endif

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string found = text.str();
  found.erase(found.find_last_not_of(" \t\r\n") + 1);
  return found;
}

// Every value of `name : value` lines.
std::vector<std::string> lines(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::vector<std::string> found;
  for (std::string line; std::getline(file, line);) {
    size_t colon = line.find(':');
    if (colon == std::string::npos || line.compare(0, name.size(), name)) continue;
    if (line.find_first_not_of(" \t", name.size()) != colon) continue;
    size_t begin = line.find_first_not_of(" \t", colon + 1);
    found.push_back(begin == std::string::npos ? "" : line.substr(begin));
  }
  return found;
}

std::string first(const std::string& path, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    auto found = lines(path, name);
    if (!found.empty()) return found[0];
  }
  return "";
}

std::string list(const std::set<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + json_string(word);
  return "[" + text + "]";
}

std::set<std::string> features() {
  std::istringstream words(first("/proc/cpuinfo", {"flags", "Features"}));
  std::set<std::string> found;
  for (std::string word; words >> word;) found.insert(word);
  unsigned long bits = getauxval(AT_HWCAP);  // what 32-bit programs have, whatever cpuinfo says
  for (const auto& cap : CAPS)
    if (bits >> cap.bit & 1) found.insert(cap.name);
  return found;
}

std::string caches() {
  std::string text;
  for (int i = 0;; i++) {
    std::string folder = CPUS + "0/cache/index" + std::to_string(i), size = read(folder + "/size");
    if (size.empty()) return "[" + text + "]";
    std::string kind = read(folder + "/type");
    for (char& c : kind) c = tolower(c);
    long bytes = atol(size.c_str()) * (size.back() == 'K' ? 1 << 10 : size.back() == 'M' ? 1 << 20 : 1);
    text += (i ? ", {" : "{") + std::string("\"level\": ") + std::to_string(atoi(read(folder + "/level").c_str())) +
            ", \"kind\": " + json_string(kind) + ", \"bytes\": " + std::to_string(bytes) +
            ", \"shared_by\": " + json_string(read(folder + "/shared_cpu_list")) + "}";
  }
}

// The largest number in `cpu*/cpufreq/NAME` or the like, times `scale`; JSON's null without one.
std::string most(const std::string& begin, const std::string& end, double scale) {
  double best = 0;
  for (int i = 0; i < 256; i++) best = std::max(best, atof(read(begin + std::to_string(i) + end).c_str()));
  return best > 0 ? std::to_string(best * scale) : "null";
}

long timer_ns() {
  timespec a, b;
  long least = 1000000000;
  for (int i = 0; i < 50; i++) {
    clock_gettime(CLOCK_MONOTONIC, &a);
    do clock_gettime(CLOCK_MONOTONIC, &b);
    while (a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec);
    least = std::min(least, (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec);
  }
  return least;
}

}  // namespace

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < 32 || c > 126 ? '?' : (char)c;
  }
  return out + "\"";
}

std::string cpu_name() { return first("/proc/cpuinfo", {"model name", "Model", "CPU part"}); }

// As `measure/load.py` reads it: counters since the machine started, of all CPUs and one process.
std::string load(int pid) {
  std::istringstream all(read("/proc/stat")), own(read("/proc/" + std::to_string(pid) + "/stat"));
  std::string word, ticks, hot = "null";
  all >> word;
  for (int i = 0; i < 8 && all >> word; i++) ticks += (i ? ", " : "") + word;
  own.ignore(1 << 20, ')');
  long long mine = 0;
  for (int i = 0; i < 13 && own >> word; i++)
    if (i >= 11) mine += atoll(word.c_str());
  double mhz = 0;
  long long counted = 0;
  int known = 0, count = (int)sysconf(_SC_NPROCESSORS_CONF);
  for (int i = 0; i < count; i++) {
    std::string cpu = CPUS + std::to_string(i), rate = read(cpu + "/cpufreq/scaling_cur_freq");
    std::string heat = read(cpu + "/thermal_throttle/core_throttle_count");
    if (!rate.empty()) mhz += atof(rate.c_str()) * 1e-3, known++;
    if (!heat.empty()) hot = std::to_string(counted += atoll(heat.c_str()));
  }
  return "{\"ticks\": " + (ticks.empty() ? "null" : "[" + ticks + "]") + ", \"own\": " + std::to_string(mine) +
         ", \"mhz\": " + (known == count && known ? std::to_string(mhz / known) : "null") + ", \"hot\": " + hot + "}";
}

std::string boot_id() { return read("/proc/sys/kernel/random/boot_id"); }

int cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : std::max(1, CPU_COUNT(&set));
}

std::string facts(int threads, bool all) {
  std::ostringstream out;
  out << "\"machine\": " << json_string(MACHINE) << ", \"cpu\": " << json_string(cpu_name())
      << ", \"vendor\": " << json_string(first("/proc/cpuinfo", {"vendor_id"})) << ", \"features\": " << list(features())
      << ", \"cores\": " << cores() << ", \"tvm\": \"" TVM_VERSION "\", \"tvmsep\": \"" TVMSEP_VERSION "\"";
  if (!all) return out.str();
  utsname system;
  uname(&system);
  struct statvfs disk = {};
  const char* home = getenv("HOME");
  statvfs(home ? home : "/", &disk);
  double load = 0;
  getloadavg(&load, 1);
  auto kib = [](const char* name) { return atoll(first("/proc/meminfo", {name}).c_str()) * 1024; };
  auto makers = lines("/proc/cpuinfo", "CPU implementer"), parts = lines("/proc/cpuinfo", "CPU part");
  std::set<std::string> pairs, governors;
  for (size_t i = 0; i < std::min(makers.size(), parts.size()); i++) pairs.insert(makers[i] + " " + parts[i]);
  for (int i = 0; i < 256; i++) {
    auto word = read(CPUS + std::to_string(i) + "/cpufreq/scaling_governor");
    if (!word.empty()) governors.insert(word);
  }
  auto throttled = read("/sys/devices/platform/soc/soc:firmware/get_throttled");
  out << ", \"bits\": " << 8 * sizeof(void*) << ", \"system\": \"Linux\", \"kernel\": " << json_string(system.release)
      << ", \"libc\": " << json_string(std::string("glibc ") + gnu_get_libc_version())
      << ", \"home\": " << json_string(home ? home : "/")
      << ", \"disk_free_bytes\": " << (unsigned long long)disk.f_bavail * disk.f_frsize
      << ", \"threads\": " << threads << ", \"load\": " << load << ", \"timer_ns\": " << timer_ns()
      << ", \"caches\": " << caches() << ", \"tvm_ffi\": \"" FFI_VERSION "\", \"parts\": " << list(pairs)
      << ", \"memory_bytes\": " << kib("MemTotal") << ", \"available_bytes\": " << kib("MemAvailable")
      << ", \"governors\": " << list(governors)
      << ", \"mhz\": " << most(CPUS, "/cpufreq/scaling_cur_freq", 1e-3)
      << ", \"max_mhz\": " << most(CPUS, "/cpufreq/cpuinfo_max_freq", 1e-3)
      << ", \"celsius\": " << most("/sys/class/thermal/thermal_zone", "/temp", 1e-3)
      << ", \"throttled\": " << (throttled.empty() ? "null" : throttled == "0" ? "false" : "true");
  return out.str();
}

}  // namespace tvmsep
