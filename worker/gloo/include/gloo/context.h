// Stands in for Gloo's own header, which the PyTorch wheel does not ship: c10d's headers name this method, and nothing
// that is compiled here calls it.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
