// What all C interfaces to libtorch share: no exception crosses into Rust.

#pragma once

#include <cstddef>
#include <cstring>
#include <exception>

namespace dico {

constexpr size_t ERROR_LENGTH = 512;

inline void report(char* error, const char* text) {
  std::strncpy(error, text, ERROR_LENGTH - 1);
  error[ERROR_LENGTH - 1] = '\0';
  // c10 appends a stack trace on further lines.
  if (char* end = std::strchr(error, '\n')) *end = '\0';
}

// What `body` returns; null where it throws, with the reason in a buffer of ERROR_LENGTH bytes.
template <typename F>
auto guarded(char* error, F&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& e) {
    report(error, e.what());
  } catch (...) {
    report(error, "unknown exception");
  }
  return nullptr;
}

}  // namespace dico
