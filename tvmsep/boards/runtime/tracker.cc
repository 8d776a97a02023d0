#include "tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <sstream>
#include <stdexcept>

#include "facts.h"

namespace tvmsep {
namespace {

constexpr int MAGIC = 0x2f271, PUT = 3, UPDATE_INFO = 5, PENDING_KEYS = 7;
constexpr double PING_S = 2, CLAIM_S = 8, REPORT_S = 10, LAST_WAIT_S = 5;
constexpr int TIMEOUT_S = 5, MAX_MESSAGE = 1 << 20;

double clock_s(clockid_t id) {
  timespec t;
  clock_gettime(id, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

bool connect_in_time(int fd, const sockaddr* address, socklen_t size) {
  fcntl(fd, F_SETFL, O_NONBLOCK);
  if (connect(fd, address, size) && errno != EINPROGRESS) return false;
  pollfd wait = {fd, POLLOUT, 0};
  int error = ETIMEDOUT;
  socklen_t length = sizeof error;
  if (poll(&wait, 1, TIMEOUT_S * 1000) == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  fcntl(fd, F_SETFL, 0);
  errno = error;
  return !error;
}

void exchange(int fd, void* data, size_t size, bool sending) {
  for (size_t at = 0; at < size;) {
    char* p = (char*)data + at;
    ssize_t n = sending ? send(fd, p, size - at, MSG_NOSIGNAL) : recv(fd, p, size - at, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw std::runtime_error(errno == EAGAIN ? "no answer in time" : strerror(errno));
    if (n == 0) throw std::runtime_error("it hung up; is it no tracker?");
    at += n;
  }
}

std::string shown(const Place& place) {
  return place.port ? place.host + ":" + std::to_string(place.port) : place.host;
}

}  // namespace

double now_s() { return clock_s(CLOCK_MONOTONIC); }
double unix_s() { return clock_s(CLOCK_REALTIME); }

int open_socket(const Place& place, bool listen_here) {
  if (place.host.rfind(UNIX, 0) == 0) {
    sockaddr_un local = {};
    local.sun_family = AF_UNIX;
    strncpy(local.sun_path, place.host.c_str() + strlen(UNIX), sizeof local.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect_in_time(fd, (sockaddr*)&local, sizeof local)) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  addrinfo want = {}, *found = nullptr;
  want.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(place.host.c_str(), std::to_string(place.port).c_str(), &want, &found)) return errno = 0, -1;
  int fd = -1, error = 0, on = 1;
  for (addrinfo* a = found; a && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    bool good;
    if (listen_here) {
      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      good = !bind(fd, a->ai_addr, a->ai_addrlen) && !listen(fd, 16);
    } else {
      good = connect_in_time(fd, a->ai_addr, a->ai_addrlen);
    }
    if (good) {
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    } else {
      error = errno;
      close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(found);
  errno = error;
  return fd;
}

void Tracker::lost(const std::string& why) {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  ticket_.clear();
  std::string text = "no registration with the tracker at " + shown(at_) + ": " + why;
  if (text != said_) say(said_ = text);
  next_ = now_s() + wait_s_;
  wait_s_ = std::min(2 * wait_s_, LAST_WAIT_S);
}

std::string Tracker::call(const std::string& message) {
  int32_t size = message.size();
  std::string data((char*)&size, 4);
  data += message;
  exchange(fd_, data.data(), data.size(), true);
  exchange(fd_, &size, 4, false);
  if (size <= 0 || size > MAX_MESSAGE) throw std::runtime_error("its answer makes no sense");
  data.assign(size, 0);
  exchange(fd_, data.data(), size, false);
  return data;
}

void Tracker::connect() {
  fd_ = open_socket(at_, false);
  if (fd_ < 0) throw std::runtime_error(errno ? strerror(errno) : "there is no such host");
  timeval limit = {TIMEOUT_S, 0};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  int32_t magic = MAGIC;
  exchange(fd_, &magic, 4, true);
  exchange(fd_, &magic, 4, false);
  if (magic != MAGIC) throw std::runtime_error("what listens there is no tracker");
  announce();
  said_ = "registered as " + key_ + " with the tracker at " + shown(at_);
  say(said_);
  wait_s_ = 0.5;
}

std::string Tracker::address() const { return given_.host.empty() ? "null" : json_string(given_.host); }

void Tracker::announce() {
  double busy_s = unix_s() - since_;
  if (since_ && busy_s > 1) per_min_ = 60 * loads_ / busy_s;
  std::ostringstream text;
  auto time = [](double t) { return t ? std::to_string(t) : "null"; };
  text << "[" << UPDATE_INFO << ", {\"key\": " << json_string("server:" + key_) << ", \"addr\": [" << address() << ", "
       << given_.port << "], \"tvmsep\": {" << about_ << ", \"since\": " << time(since_)
       << ", \"idle_since\": " << time(idle_since_) << ", \"trials\": " << loads_
       << ", \"trials_per_min\": " << time(per_min_) << ", \"quarantine\": " << quarantine_ << "}}]";
  if (call(text.str()) != "0") throw std::runtime_error("it refused the announcement");
}

void Tracker::session(const std::string& ticket) {
  since_ = unix_s(), idle_since_ = per_min_ = loads_ = 0;
  bool ours = ticket == ticket_;
  if (fd_ >= 0 && !ticket_.empty() && !ours) lost("in use by who did not ask it");  // withdraws the ticket
  ticket_.clear();
  next_ = now_s();
}

void Tracker::quarantine(const std::string& why) {
  quarantine_ = why.empty() ? "null" : "{\"since\": " + std::to_string(unix_s()) + ", \"why\": " + json_string(why) + "}";
}

void Tracker::ended() {
  if (!since_) return;
  double busy_s = unix_s() - since_;
  if (busy_s > 1) per_min_ = 60 * loads_ / busy_s;
  since_ = 0, idle_since_ = unix_s();
  next_ = now_s();
  if (fd_ >= 0) try {
      announce();
    } catch (const std::runtime_error& error) {
      lost(error.what());
    }
}

double Tracker::due_s() { return std::max(0.0, next_ - now_s()); }

void Tracker::tick() {
  if (due_s() > 0) return;
  try {
    if (fd_ < 0)
      connect();
    else if (since_)
      announce();
    next_ = now_s() + (since_ ? REPORT_S : PING_S);
    if (since_) return;
    if (!ticket_.empty()) {
      bool waits = call("[" + std::to_string(PENDING_KEYS) + "]").find(ticket_) != std::string::npos;
      taken_ = waits ? 0 : taken_ ? taken_ : now_s();
    }
    if (ticket_.empty() || (taken_ && now_s() - taken_ > CLAIM_S)) {
      static std::random_device random;
      ticket_ = key_ + ":0." + std::to_string(random()) + std::to_string(random());
      taken_ = 0;
      std::string put = "[" + std::to_string(PUT) + ", " + json_string(key_) + ", [" + std::to_string(given_.port) + ", " +
                        json_string(ticket_) + "], " + address() + "]";
      if (call(put) != "0") throw std::runtime_error("it refused the board");
    }
  } catch (const std::runtime_error& error) {
    lost(error.what());
  }
}

}  // namespace tvmsep
