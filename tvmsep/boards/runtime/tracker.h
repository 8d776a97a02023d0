// A board's registration with TVM's tracker, as tvmsep/boards/registrar.py does it in Python.
#pragma once
#include <functional>
#include <string>
#include <utility>

namespace tvmsep {

double now_s();        // monotonic
double unix_s();       // since 1970
void say(const std::string& text);

constexpr char UNIX[] = "unix:";

// An address; `host` "unix:/path" with port 0 is a socket of this machine's.
struct Place {
  std::string host;
  int port = 0;
};

// A listening (`listen_here`) or connected socket; -1 with errno, or -1 with errno 0 for no address.
int open_socket(const Place& place, bool listen_here);

class Tracker {
 public:
  // `given`: what clients shall connect to; an empty host is the address the tracker sees us come
  // from. `about`: members of the announcement, in JSON.
  Tracker(Place at, std::string key, Place given, std::string about)
      : at_(std::move(at)), key_(std::move(key)), given_(std::move(given)), about_(std::move(about)) {}

  void session(const std::string& ticket);  // one began
  void loaded() { loads_++; }
  void quarantine(const std::string& why);  // "" takes it back
  void ended();
  void tick();       // what is due now; waits no longer than some seconds for the tracker
  double due_s();    // until the next tick
  int fd() const { return fd_; }
  void lost(const std::string& why);

 private:
  std::string call(const std::string& message);
  void connect();
  void announce();
  std::string address() const;

  Place at_;
  std::string key_;
  Place given_;
  std::string about_, ticket_, quarantine_ = "null", said_;
  int fd_ = -1, loads_ = 0;
  double next_ = 0, wait_s_ = 0.5, taken_ = 0, since_ = 0, idle_since_ = unix_s(), per_min_ = 0;
};

}  // namespace tvmsep
