// The RPC server loop over a socket, in place of TVM's rpc_socket_impl.cc: a board needs no client.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>

#include "src/runtime/rpc/rpc_endpoint.h"

namespace tvmsep {

// Owns a connected socket.
class SocketChannel final : public tvm::runtime::RPCChannel {
 public:
  explicit SocketChannel(int fd) : fd_(fd) {}
  ~SocketChannel() { close(fd_); }
  size_t Send(const void* data, size_t size) final {
    return done(retry([&] { return send(fd_, data, size, MSG_NOSIGNAL); }), "send");
  }
  size_t Recv(void* data, size_t size) final {
    return done(retry([&] { return recv(fd_, data, size, 0); }), "receive");
  }

 private:
  template <typename Call>
  static ssize_t retry(Call call) {
    ssize_t count;
    do count = call();
    while (count < 0 && errno == EINTR);
    return count;
  }
  static size_t done(ssize_t count, const char* what) {
    if (count < 0) TVM_FFI_THROW(RuntimeError) << what << ": " << strerror(errno);
    return count;
  }
  int fd_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("rpc.ServerLoop", [](int fd) {
    auto channel = std::make_unique<SocketChannel>(fd);
    tvm::runtime::RPCEndpoint::Create(std::move(channel), "board", "")->ServerLoop();
  });
}

}  // namespace tvmsep
