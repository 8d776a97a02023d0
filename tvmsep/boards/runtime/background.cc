#include "background.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "facts.h"
#include "tracker.h"

namespace tvmsep {

int claim_fd = -1;

namespace {

constexpr double NAMED_S = 1, END_S = 10, START_S = 60;

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  exit(2);
}

std::string beside(const std::string& state, const char* suffix) {
  if (state.size() < 6 || state.substr(state.size() - 5) != ".json")
    fail("--state " + state + ": give a name that ends with .json");
  return state.substr(0, state.size() - 5) + suffix;
}

std::string content(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Who holds a lock, 0 for nobody. A holder locks first and then writes its id.
int holder(const std::string& lock) {
  int fd = open(lock.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  int pid = 0;
  for (double end = now_s() + NAMED_S;;) {
    if (!flock(fd, LOCK_EX | LOCK_NB)) {
      pid = 0;
      break;
    }
    pid = atoi(content(lock).c_str());
    if ((pid > 0 && (!kill(pid, 0) || errno == EPERM)) || now_s() > end) break;
    usleep(10000);
  }
  close(fd);
  return pid;
}

// What the process behind a state file says; "" if none runs or it is not ready.
std::string running(const std::string& state) {
  int pid = holder(beside(state, ".lock"));
  std::string text = pid ? content(state) : "";
  return text.rfind("{\"pid\": " + std::to_string(pid) + ",", 0) ? "" : text;
}

bool stop(const std::string& state) {
  std::string lock = beside(state, ".lock");
  int pid = holder(lock);
  if (!pid) return false;
  for (int number : {SIGTERM, SIGKILL}) {
    if (kill(pid, number) && errno == EPERM)
      fail("process " + std::to_string(pid) + ", which holds " + lock + ", is another user's: end it as that user");
    for (double end = now_s() + END_S; now_s() < end; usleep(50000))
      if (holder(lock) != pid) return true;
  }
  fail("process " + std::to_string(pid) + ", which holds " + lock + ", does not end, even when killed: restart its machine");
}

}  // namespace

void claim(const std::string& state) {
  std::string lock = beside(state, ".lock");
  claim_fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (claim_fd < 0) fail("cannot write " + lock + ": " + strerror(errno) + "; choose another");
  if (flock(claim_fd, LOCK_EX | LOCK_NB))
    fail("process " + std::to_string(holder(lock)) + " runs with " + state + " already");
  unlink(state.c_str());
  std::string pid = std::to_string(getpid());
  if (ftruncate(claim_fd, 0) || pwrite(claim_fd, pid.data(), pid.size(), 0) < 0)
    fail("cannot write " + lock + ": " + strerror(errno));
}

void write_state(const std::string& state, int port, const std::string& words) {
  std::string text = "{\"pid\": " + std::to_string(getpid()) + ", \"port\": " + std::to_string(port) +
                     ", \"words\": " + json_string(words) + "}\n";
  std::string fresh = beside(state, ".new");
  int fd = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  bool good = fd >= 0 && write(fd, text.data(), text.size()) == (ssize_t)text.size() && !fsync(fd);
  if (fd >= 0) close(fd);
  if (!good || rename(fresh.c_str(), state.c_str())) fail("cannot write " + state + ": " + strerror(errno));
}

void drop_state(const std::string& state) {
  unlink(state.c_str());
  [[maybe_unused]] int ignored = ftruncate(claim_fd, 0);
}

[[noreturn]] void detach(const std::string& state, char** words, const std::string& shown) {
  std::string now = running(state), log = beside(state, ".log");
  if (now.find("\"words\": " + json_string(shown) + "}") == std::string::npos) {
    stop(state);
    int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600), null = open("/dev/null", O_RDONLY);
    if (fd < 0) fail("cannot write " + log + ": " + strerror(errno) + "; choose another");
    pid_t pid = fork();
    if (pid < 0) fail(strerror(errno));
    if (pid == 0) {
      setsid();
      dup2(null, 0), dup2(fd, 1), dup2(fd, 2);
      execv("/proc/self/exe", words);
      _exit(127);
    }
    int status, end_of = 0;
    for (double end = now_s() + START_S; (now = running(state)).empty(); usleep(20000)) {
      if ((end_of = waitpid(pid, &status, WNOHANG)) || now_s() > end) break;
    }
    if (now.empty()) {
      if (!end_of) kill(pid, SIGKILL);
      std::string said = content(log), last;
      std::istringstream lines(said);
      for (std::string line; std::getline(lines, line);) last = line;
      if (last.rfind("error: ", 0) == 0) last.erase(0, 7);
      fail((end_of ? "" : "not ready in time: ") + (last.empty() ? "it said nothing" : last) + " (all of it: " + log + ")");
    }
  }
  std::fputs(now.c_str(), stdout);
  exit(0);
}

[[noreturn]] void watch(int pid) {
  std::puts("listening");
  std::fflush(stdout);
  pollfd in = {0, POLLIN, 0};
  while (!kill(pid, 0)) {
    if (poll(&in, 1, 3000) > 0) exit(0);
  }
  fail("the server has ended");
}

[[noreturn]] void end_process(const std::string& state) {
  std::puts(stop(state) ? "stopped" : "was not running");
  exit(0);
}

}  // namespace tvmsep
