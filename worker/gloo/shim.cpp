// A C interface to libtorch's c10d: the rendezvous store, Gloo's process group, and three
// collectives.
//
// A function that fails returns null (or -1) and writes the reason to a buffer of ERROR_LENGTH
// bytes. No exception crosses into Rust. Tensors are `at::Tensor*`, as in tch.

#define USE_C10D_GLOO

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "exceptions.h"

namespace {

using dico::catch_exceptions;
using dico::write_error;

// The timeout of collectives. It is never reached: ranks may compute for any time while others
// wait, and the coordinator detects stalled workers.
constexpr std::chrono::milliseconds COLLECTIVE_TIMEOUT = std::chrono::hours(24 * 7);

using StorePtr = c10::intrusive_ptr<c10d::Store>;
using GlooGroupPtr = c10::intrusive_ptr<c10d::ProcessGroupGloo>;

// A collective in flight, with the tensors that it reads and writes kept alive.
struct PendingWork {
  c10::intrusive_ptr<c10d::Work> work;
  std::vector<at::Tensor> input;
  std::vector<std::vector<at::Tensor>> output;
};

}  // namespace

extern "C" {

// Serves a store on the listening socket `fd`, and takes ownership of it.
void* dico_store_serve(int fd, const char* host, uint16_t port, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    c10d::TCPStoreOptions options;
    options.isServer = true;
    options.waitWorkers = false;
    options.port = port;
    options.masterListenFd = fd;
    return new StorePtr(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
  });
}

void dico_store_free(void* store) {
  delete static_cast<StorePtr*>(store);
}

// Connects to the store at `host:port`. All keys get the prefix `prefix`.
void* dico_store_connect(const char* host, uint16_t port, const char* prefix, int64_t timeout_ms, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    return new StorePtr(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), tcp));
  });
}

void* dico_store_set(void* store, const char* key, const uint8_t* value, size_t length, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    (*static_cast<StorePtr*>(store))->set(key, std::vector<uint8_t>(value, value + length));
    return store;
  });
}

// Waits for a value of exactly this length.
void* dico_store_get(void* store, const char* key, uint8_t* value, size_t length, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    const std::vector<uint8_t> stored = (*static_cast<StorePtr*>(store))->get(key);
    if (stored.size() != length) {
      throw std::runtime_error(std::string(key) + " has " + std::to_string(stored.size()) + " bytes, not " +
                               std::to_string(length));
    }
    std::copy(stored.begin(), stored.end(), value);
    return store;
  });
}

// Connects to the other `size - 1` ranks through the store. Blocks until all are connected, or
// until the timeout.
void* dico_gloo_new(void* store, const char* own_host, int rank, int size, int64_t timeout_ms, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(std::string(own_host)));
    return new GlooGroupPtr(c10::make_intrusive<c10d::ProcessGroupGloo>(*static_cast<StorePtr*>(store), rank, size, options));
  });
}

void dico_gloo_free(void* group) {
  delete static_cast<GlooGroupPtr*>(group);
}

// Sums the tensor over all ranks, in place.
void* dico_gloo_all_reduce(void* group, void* tensor, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    auto* work = new PendingWork{{}, {*static_cast<at::Tensor*>(tensor)}, {}};
    c10d::AllreduceOptions options;
    options.timeout = COLLECTIVE_TIMEOUT;
    work->work = (*static_cast<GlooGroupPtr*>(group))->allreduce(work->input, options);
    return work;
  });
}

void* dico_gloo_broadcast(void* group, void* tensor, int root, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    auto* work = new PendingWork{{}, {*static_cast<at::Tensor*>(tensor)}, {}};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = COLLECTIVE_TIMEOUT;
    work->work = (*static_cast<GlooGroupPtr*>(group))->broadcast(work->input, options);
    return work;
  });
}

// Gathers the tensors of all ranks, which have the same shape, into `outputs`, in order of rank.
void* dico_gloo_all_gather(void* group, void* tensor, void** outputs, int count, char* error) {
  return catch_exceptions(error, [&]() -> void* {
    auto* work = new PendingWork{{}, {*static_cast<at::Tensor*>(tensor)}, {{}}};
    for (int i = 0; i < count; ++i) work->output[0].push_back(*static_cast<at::Tensor*>(outputs[i]));
    c10d::AllgatherOptions options;
    options.timeout = COLLECTIVE_TIMEOUT;
    work->work = (*static_cast<GlooGroupPtr*>(group))->allgather(work->output, work->input, options);
    return work;
  });
}

// Waits at most `timeout_ms`. Returns 1 if the work has completed, 0 if it has not, and -1 if it
// has failed.
int dico_work_wait(void* handle, int64_t timeout_ms, char* error) {
  auto& work = static_cast<PendingWork*>(handle)->work;
  if (!work->isCompleted()) {
    try {
      work->wait(std::chrono::milliseconds(timeout_ms));
    } catch (...) {
      // Timed out or failed: distinguished below.
    }
    if (!work->isCompleted()) return 0;
  }
  try {
    if (work->isSuccess()) return 1;
    std::rethrow_exception(work->exception());
  } catch (const std::exception& e) {
    write_error(error, e.what());
  } catch (...) {
    write_error(error, "unknown exception");
  }
  return -1;
}

void dico_work_free(void* work) {
  delete static_cast<PendingWork*>(work);
}

}  // extern "C"
