// A board's RPC server without Python: TVM's protocol, one forked child a session, as
// tvmsep/measure/server.py does it. A candidate that crashes or hangs takes its child along, no more.
// The parent never calls into TVM: its pool of threads belongs to the children.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include "background.h"
#include "facts.h"
#include "tracker.h"

namespace fs = std::filesystem;
using tvmsep::now_s;
using tvmsep::say;

namespace {

constexpr int MAGIC = 0xff271, MISMATCH = MAGIC + 2, MAX_KEY_BYTES = 4096, HANDSHAKE_TIMEOUT_S = 5;

const char USAGE[] =
    "usage: tvmsep-server --key KEY [--tracker HOST:PORT] [--host 127.0.0.1] [--port 9090]\n"
    "    [--advertise HOST:PORT] [--threads N] [--session-timeout SECONDS] [--grace SECONDS]\n"
    "    [--state FILE.json [--detach]]\n"
    "   or: tvmsep-server facts | watch PID | stop FILE.json\n"
    "\n"
    "TVM's RPC server for tuning this board. --port 0 picks a free one. --advertise is what the\n"
    "tracker hands out, behind a tunnel. --threads: most that candidates can use (all cores).\n"
    "--tracker unix:/path is a socket that ssh forwards. --state is written when it is ready;\n"
    "--detach runs it in the background, where `stop` ends it; `watch` ends when it does.\n"
    "No authentication: whoever reaches the port runs code here.\n";

struct Options {
  std::string key, state;
  bool detach = false;
  tvmsep::Place at{"127.0.0.1", 9090}, tracker, given;
  int threads = 0;
  double limit_s = 0, grace_s = 1;
};

struct Child {
  pid_t pid = 0;
  int conn = -1, events = -1;
  std::string folder, heard;
  double kill_at = INFINITY;
};

int wake[2];
volatile sig_atomic_t stop = 0;

void on_signal(int number) {
  int before = errno;
  if (number != SIGCHLD) stop = 1;
  [[maybe_unused]] ssize_t n = write(wake[1], "x", 1);
  errno = before;
}

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  exit(2);
}

double number(const std::string& flag, const char* text, double least, double most) {
  char* end;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= least && value <= most)) fail(flag + " " + text + " is not a sensible number");
  return value;
}

tvmsep::Place place(const std::string& flag, const std::string& text) {
  if (text.rfind(tvmsep::UNIX + std::string("/"), 0) == 0) {
    if (text.size() > 105) fail(flag + " " + text + ": write unix:/path, of at most 100 characters");
    return {text, 0};
  }
  size_t colon = text.rfind(':');
  if (colon == std::string::npos || !colon) fail(flag + " " + text + " is not an address: write host:9190");
  std::string host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {host, (int)number(flag, text.c_str() + colon + 1, 1, 65535)};
}

Options parse(int count, char** words) {
  Options o;
  for (int i = 1; i < count; i++) {
    std::string flag = words[i];
    if (flag == "--help") {
      std::fputs(USAGE, stdout);
      exit(0);
    }
    if (flag == "--detach") {
      o.detach = true;
      continue;
    }
    if (i + 1 == count || flag.rfind("--", 0)) fail(flag + ": unknown, or without its value; see --help");
    const char* value = words[++i];
    if (flag == "--key") o.key = value;
    else if (flag == "--host") o.at.host = value;
    else if (flag == "--port") o.at.port = number(flag, value, 0, 65535);
    else if (flag == "--tracker") o.tracker = place(flag, value);
    else if (flag == "--advertise") o.given = place(flag, value);
    else if (flag == "--threads") o.threads = number(flag, value, 1, 1024);
    else if (flag == "--state") o.state = value;
    else if (flag == "--session-timeout") o.limit_s = number(flag, value, 0, 1e8);
    else if (flag == "--grace") o.grace_s = number(flag, value, 0, 1e8);
    else fail(flag + ": unknown; see --help");
  }
  if (o.key.empty() || o.key.size() > 64) fail("--key KEY: what clients ask for, as rpi4; see --help");
  for (char c : o.key)
    if (!isalnum(c) && !strchr("_.+-", c)) fail("--key: letters, digits, '_', '.', '+' and '-' only");
  if (o.detach && o.state.empty()) fail("--detach needs --state FILE.json, to find the process again");
  if (!o.threads) o.threads = tvmsep::cores();
  return o;
}

// In the child

void event(int fd, std::string text) {
  for (char& c : text) c = c == '\n' ? ' ' : c;
  text += "\n";
  [[maybe_unused]] ssize_t n = write(fd, text.data(), std::min<size_t>(text.size(), 400));
}

std::string receive(int conn, size_t size) {
  std::string data(size, 0);
  for (size_t at = 0; at < size;) {
    ssize_t n = recv(conn, &data[at], size - at, 0);
    if (n <= 0) return "";
    at += n;
  }
  return data;
}

int32_t receive_int(int conn) {
  std::string data = receive(conn, 4);
  int32_t value = -1;
  if (data.size() == 4) memcpy(&value, data.data(), 4);
  return value;
}

// Answers a client: what it named, and its own limit on the session; "" if it is refused.
std::string handshake(int conn, const std::string& key, double* limit_s) {
  int32_t size;
  if (receive_int(conn) != MAGIC || (size = receive_int(conn)) < 0 || size > MAX_KEY_BYTES) return "";
  std::istringstream words(receive(conn, size));
  std::string named, word;
  words >> named;
  bool client = named.rfind("client:", 0) == 0;
  named = client ? named.substr(7) : named;
  if (!client || (named != key && named.substr(0, named.rfind(':')) != key)) {
    send(conn, &MISMATCH, 4, MSG_NOSIGNAL);
    return "";
  }
  while (words >> word)
    if (word.rfind("-timeout=", 0) == 0) {
      double asked = atof(word.c_str() + 9);
      if (asked > 0 && asked < 1e9) *limit_s = *limit_s > 0 ? std::min(*limit_s, asked) : asked;
    }
  std::string ours = "server:" + key;
  int32_t answer[2] = {MAGIC, (int32_t)ours.size()};
  ours.insert(0, (char*)answer, sizeof answer);
  send(conn, ours.data(), ours.size(), MSG_NOSIGNAL);
  return named;
}

// The main thread works too; it gets a CPU that no worker of TVM's pool is pinned to.
int config_threads(int threads) {
  using tvm::ffi::Function;
  Function::GetGlobalRequired("runtime.config_threadpool")(1, threads);
  cpu_set_t taken, free, one;
  CPU_ZERO(&taken);
  for (const auto& task : fs::directory_iterator("/proc/self/task")) {
    int tid = atoi(task.path().filename().c_str());
    if (!sched_getaffinity(tid, sizeof one, &one) && CPU_COUNT(&one) == 1) CPU_OR(&taken, &taken, &one);
  }
  sched_getaffinity(0, sizeof free, &free);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &free) && !CPU_ISSET(cpu, &taken)) {
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      sched_setaffinity(0, sizeof one, &one);
      break;
    }
  return Function::GetGlobalRequired("runtime.NumThreads")().cast<int>();
}

void offer(int events, int threads) {
  using tvm::ffi::Bytes, tvm::ffi::Function, tvm::ffi::Module, tvm::ffi::String;
  auto add = [](const char* name, auto call) { Function::SetGlobal(name, Function::FromTyped(call), true); };
  auto path = [](const String& name) { return (fs::current_path() / std::string(name)).string(); };
  add("tvm.rpc.server.workpath", [path](String name) { return String(path(name)); });
  add("tvm.rpc.server.load_module", [path, events](String name) {
    event(events, "loaded");
    return Module::LoadFromFile(path(name));
  });
  add("tvm.rpc.server.download_linked_module", [path](String name) {
    if (fs::path(std::string(name)).extension() != ".so")
      TVM_FFI_THROW(ValueError) << name << ": this server has no linker; upload a linked .so";
    std::ifstream file(path(name), std::ios::binary);
    std::stringstream data;
    data << file.rdbuf();
    return Bytes(data.str());
  });
  add("tvmsep.cpu", [] { return String(tvmsep::cpu_name()); });
  add("tvmsep.load", [] { return String(tvmsep::load(getpid())); });
  add("tvmsep.host", [] { return String(tvmsep::boot_id()); });
  add("tvmsep.facts", [threads] { return String("{" + tvmsep::facts(threads, true) + "}"); });
  add("tvmsep.config_threads", config_threads);
  add("tvmsep.quarantine", [events](String why) { event(events, "quarantine " + std::string(why)); });
}

[[noreturn]] void session(int conn, int events, const Options& o, const std::string& folder, pid_t parent) {
  int code = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent || chdir(folder.c_str())) _exit(1);
  timeval limit = {HANDSHAKE_TIMEOUT_S, 0}, none = {0, 0};
  setsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  double limit_s = o.limit_s;
  std::string named = handshake(conn, o.key, &limit_s);
  if (named.empty()) _exit(0);
  event(events, "session " + named);
  setsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
  if (limit_s > 0) {
    double whole = std::floor(limit_s);
    itimerval alarm = {{0, 0}, {(time_t)whole, (suseconds_t)std::max(1.0, (limit_s - whole) * 1e6)}};
    setitimer(ITIMER_REAL, &alarm, nullptr);
  }
  try {
    offer(events, o.threads);
    tvm::ffi::Function::GetGlobalRequired("rpc.ServerLoop")(conn);
  } catch (const std::exception& error) {
    say(std::string("session ended: ") + error.what());
    code = 1;
  }
  _exit(code);
}

// In the parent

// The sessions' folder, locked while this process lives; those of dead processes are removed first.
class Scratch {
 public:
  Scratch() {
    std::error_code ignored;
    fs::directory_iterator each(fs::temp_directory_path(ignored), ignored), end;
    for (; !ignored && each != end; each.increment(ignored)) {
      fs::path old = each->path();
      if (old.filename().string().rfind(PREFIX, 0)) continue;
      struct stat info;
      int fd = open(old.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      // A young one may be about to be locked by the process that just made it.
      if (fd >= 0 && !fstat(fd, &info) && info.st_mtime + 10 < time(nullptr) && !flock(fd, LOCK_EX | LOCK_NB))
        fs::remove_all(old, ignored);
      if (fd >= 0) close(fd);
    }
    if (!there()) fail((fs::temp_directory_path(ignored) / PREFIX).string() + ": " + strerror(errno) + "; set TMPDIR");
  }

  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  const fs::path& path() const { return path_; }

  // Whether it is there; made anew where something removed it.
  bool there() {
    std::error_code ignored;
    if (!path_.empty() && fs::is_directory(path_, ignored)) return true;
    std::string made = (fs::temp_directory_path(ignored) / (std::string(PREFIX) + "XXXXXX")).string();
    if (!mkdtemp(made.data())) return false;
    if (fd_ >= 0) close(fd_);
    path_ = made;
    fd_ = open(made.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd_ >= 0 && !flock(fd_, LOCK_EX);
  }

 private:
  static constexpr const char* PREFIX = "tvmsep-sessions-";
  fs::path path_;
  int fd_ = -1;
};

class Server {
 public:
  Server(const Options& o, int listener, Scratch& scratch, tvmsep::Tracker* tracker)
      : o_(o), listener_(listener), scratch_(scratch), tracker_(tracker) {}

  void run() {
    while (!stop) step();
    if (child_.pid) {
      kill(child_.pid, SIGKILL);
      waitpid(child_.pid, nullptr, 0);
      forget();
    }
  }

 private:
  void step() {
    if (tracker_) tracker_->tick();
    double wait_s = tracker_ ? tracker_->due_s() : 60;
    if (child_.kill_at != INFINITY) wait_s = std::min(wait_s, std::max(0.0, child_.kill_at - now_s()));
    short hangup = child_.kill_at == INFINITY ? POLLRDHUP : 0;
    pollfd watch[] = {{wake[0], POLLIN, 0},
                      {child_.pid ? -1 : listener_, POLLIN, 0},
                      {hangup ? child_.conn : -1, hangup, 0},
                      {child_.events, POLLIN, 0},
                      {tracker_ ? tracker_->fd() : -1, POLLIN, 0}};
    if (poll(watch, 5, (int)std::ceil(std::min(wait_s, 60.0) * 1e3)) < 0) return;
    char drain[256];
    if (watch[0].revents) while (read(wake[0], drain, sizeof drain) > 0) {}
    if (watch[4].revents) tracker_->lost("it has gone");
    if (watch[3].revents) hear();
    if (!child_.pid) {
      if (watch[1].revents) accept_one();
      return;
    }
    int status;
    if (waitpid(child_.pid, &status, WNOHANG) == child_.pid) {
      if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        say("the session reached its time limit");
      else if (WIFSIGNALED(status))
        say(std::string("the session's process was ended by signal ") + std::to_string(WTERMSIG(status)) + " (" +
            strsignal(WTERMSIG(status)) + ")");
      forget();
    } else if (now_s() >= child_.kill_at) {
      say("the client left in mid-computation; its session was killed");
      kill(child_.pid, SIGKILL);
      waitpid(child_.pid, nullptr, 0);
      forget();
    } else if (watch[2].revents) {
      child_.kill_at = now_s() + o_.grace_s;
    }
  }

  void accept_one() {
    int conn = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC), on = 1, pipes[2];
    if (conn < 0) return;
    setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bool there = scratch_.there();
    std::string folder = (scratch_.path() / "session-XXXXXX").string();
    if (!there || !mkdtemp(folder.data()) || pipe2(pipes, O_CLOEXEC | O_NONBLOCK)) {
      say(std::string("no session: ") + strerror(errno));
      close(conn);
      return;
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
      for (int s : {SIGTERM, SIGHUP, SIGCHLD, SIGALRM}) signal(s, SIG_DFL);
      signal(SIGINT, SIG_IGN);
      close(listener_);
      close(pipes[0]);
      if (tvmsep::claim_fd >= 0) close(tvmsep::claim_fd);
      if (tracker_ && tracker_->fd() >= 0) close(tracker_->fd());  // the tracker waits for its end
      session(conn, pipes[1], o_, folder, parent);
    }
    close(pipes[1]);
    child_ = {pid, conn, pipes[0], folder, "", INFINITY};
    if (pid < 0) {
      say(std::string("no session: ") + strerror(errno));
      forget();
    }
  }

  void hear() {
    char data[4096];
    ssize_t n;
    while ((n = read(child_.events, data, sizeof data)) > 0) child_.heard.append(data, n);
    if (n == 0) {  // the child closed it: it ends
      close(child_.events);
      child_.events = -1;
    }
    for (size_t end; (end = child_.heard.find('\n')) != std::string::npos; child_.heard.erase(0, end + 1)) {
      std::string line = child_.heard.substr(0, end), word = line.substr(0, line.find(' '));
      std::string rest = line.size() > word.size() ? line.substr(word.size() + 1) : "";
      if (!tracker_) continue;
      if (word == "session") tracker_->session(rest);
      else if (word == "loaded") tracker_->loaded();
      else if (word == "quarantine") tracker_->quarantine(rest);
    }
  }

  // The child is gone: hang up on its client, remove its folder.
  void forget() {
    if (child_.events >= 0) hear();
    if (child_.events >= 0) close(child_.events);
    close(child_.conn);
    std::error_code ignored;
    fs::remove_all(child_.folder, ignored);
    child_ = Child();
    if (tracker_) tracker_->ended();
  }

  const Options& o_;
  int listener_;
  Scratch& scratch_;
  tvmsep::Tracker* tracker_;
  Child child_;
};

}  // namespace

void tvmsep::say(const std::string& text) {
  time_t now = time(nullptr);
  tm parts;
  char clock[16];
  strftime(clock, sizeof clock, "%H:%M:%S", localtime_r(&now, &parts));
  std::fprintf(stderr, "%s %s\n", clock, text.c_str());
}

namespace {

// The commands that serve nobody; returns for all others.
void other_command(int count, char** words) {
  std::string what = count > 1 ? words[1] : "", about = count > 2 ? words[2] : "";
  if (what == "facts" && count == 2) {
    std::printf("{%s}\n", tvmsep::facts(tvmsep::cores(), true).c_str());
    exit(0);
  }
  if (what == "watch" && count == 3) tvmsep::watch((int)number(what, words[2], 1, 1 << 30));
  if (what == "stop" && count == 3) tvmsep::end_process(about);
}

// The command line without `--detach`, as execv takes it.
std::vector<char*> without_detach(int count, char** words) {
  std::vector<char*> kept;
  for (int i = 0; i < count; i++)
    if (strcmp(words[i], "--detach")) kept.push_back(words[i]);
  kept.push_back(nullptr);
  return kept;
}

std::string one_line(const std::vector<char*>& words) {
  std::string text = TVMSEP_VERSION;
  for (size_t i = 1; words[i]; i++) text += std::string(" ") + words[i];
  return text;
}

}  // namespace

int main(int count, char** words) {
  other_command(count, words);
  Options o = parse(count, words);
  std::vector<char*> own = without_detach(count, words);
  if (o.detach) tvmsep::detach(o.state, own.data(), one_line(own));
  if (!o.state.empty()) tvmsep::claim(o.state);
  bool loopback = o.at.host == "localhost" || o.at.host == "::1" || o.at.host.rfind("127.", 0) == 0;
  bool far = !o.tracker.host.empty() && o.tracker.host != "localhost" && o.tracker.host != "::1" &&
             o.tracker.host.rfind("127.", 0) != 0 && o.tracker.port;
  if (loopback && far && o.given.host.empty())
    fail("the server listens on " + o.at.host + " only, which clients of the tracker at " + o.tracker.host +
         " do not reach: add --host with this board's address");
  if (pipe2(wake, O_CLOEXEC | O_NONBLOCK)) fail(strerror(errno));
  struct sigaction act = {};
  act.sa_handler = on_signal;
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaction(s, &act, nullptr);
  signal(SIGPIPE, SIG_IGN);
  setenv("TVM_NUM_THREADS", std::to_string(o.threads).c_str(), 1);  // the pool never grows past this
  int listener = tvmsep::open_socket(o.at, true);
  std::string where = o.at.host + ":" + std::to_string(o.at.port);
  if (listener < 0) fail("cannot listen on " + where + ": " + (errno ? strerror(errno) : "there is no such host"));
  sockaddr_storage bound = {};
  socklen_t size = sizeof bound;
  getsockname(listener, (sockaddr*)&bound, &size);
  o.at.port = ntohs(bound.ss_family == AF_INET6 ? ((sockaddr_in6*)&bound)->sin6_port : ((sockaddr_in*)&bound)->sin_port);
  fcntl(listener, F_SETFL, O_NONBLOCK);
  if (!loopback)
    say("warning: this server listens on " + o.at.host + ", and TVM's RPC has no password: whoever reaches the port "
        "runs code on this machine; use it only behind a firewall");
  Scratch scratch;
  if (o.given.host.empty()) {
    bool all = o.at.host == "0.0.0.0" || o.at.host == "::";
    o.given = {loopback || all ? "" : o.at.host, o.at.port};
  }
  tvmsep::Tracker tracker(o.tracker, o.key, o.given, tvmsep::facts(o.threads, false));
  std::printf("board %s at %s:%d\n", o.key.c_str(), o.at.host.c_str(), o.at.port);
  std::fflush(stdout);
  if (!o.state.empty()) tvmsep::write_state(o.state, o.at.port, one_line(own));
  Server(o, listener, scratch, o.tracker.host.empty() ? nullptr : &tracker).run();
  if (!o.state.empty()) tvmsep::drop_state(o.state);
}
