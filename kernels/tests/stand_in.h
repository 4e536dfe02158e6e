// What XLA does for a handler, without XLA: operands, results, attributes and a pool of threads, so that the
// exported handlers run where jaxlib, which is not instrumented, has no part.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/c_api.h"

struct XLA_FFI_Error {
  std::string message;
};
struct XLA_FFI_ExecutionContext {
  int64_t threads;
  std::mutex mutex;
  std::vector<std::thread> started;  // guarded by `mutex`
};

namespace stand_in {

// Memory of exactly its numbers, aligned as XLA's: what lies behind them is the sanitizer's.
struct Array {
  XLA_FFI_DataType type;
  std::vector<int64_t> shape;
  std::shared_ptr<char> memory;

  Array(XLA_FFI_DataType dtype, std::vector<int64_t> dims) : type(dtype), shape(std::move(dims)) {
    if (!bytes()) return;
    constexpr std::align_val_t kAlign{64};
    memory.reset(static_cast<char*>(::operator new(bytes(), kAlign)),
                 [](char* p) { ::operator delete(p, kAlign); });
    std::memset(memory.get(), 0xff, bytes());  // a NaN that no kernel makes
  }
  template <typename T, typename Next>
  Array(std::vector<int64_t> dims, T, const Next& next)
      : Array(sizeof(T) == 8          ? XLA_FFI_DataType_F64
              : std::is_integral_v<T> ? XLA_FFI_DataType_S32
                                      : XLA_FFI_DataType_F32,
              std::move(dims)) {
    for (int64_t i = 0; i < count(); ++i) at<T>()[i] = static_cast<T>(next(i));
  }

  int64_t count() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  int64_t size() const { return type == XLA_FFI_DataType_F64 ? 8 : 4; }
  int64_t bytes() const { return count() * size(); }
  template <typename T>
  T* at() const {
    return reinterpret_cast<T*>(memory.get());
  }
  double operator[](int64_t i) const {
    return type == XLA_FFI_DataType_F64 ? at<double>()[i] : at<float>()[i];
  }
};

struct Attribute {
  std::string name;  // calls have them in the order of their names
  XLA_FFI_DataType type;
  int64_t value;
};

inline int64_t threads_started = 0;  // by all calls

using Handler = XLA_FFI_Error* (*)(XLA_FFI_CallFrame*);

inline const XLA_FFI_Api& api() {
  static const XLA_FFI_Api table = [] {
    XLA_FFI_Api of{};
    of.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    of.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    of.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
      return new XLA_FFI_Error{args->message};
    };
    of.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
      args->message = args->error->message.c_str();
    };
    of.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    of.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
      *args->num_threads = args->ctx->threads;
      return nullptr;
    };
    of.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
      std::lock_guard<std::mutex> lock(args->ctx->mutex);
      args->ctx->started.emplace_back(args->task, args->data);
      return nullptr;
    };
    return of;
  }();
  return table;
}

// Calls a handler; the text of its error, empty where there is none. Threads may begin after the handler has
// returned, as those of a busy pool do.
inline std::string call(Handler handler, const std::vector<Array>& operands, std::vector<Array>& results,
                        const std::vector<Attribute>& attributes, int64_t threads) {
  const auto buffers_of = [](const std::vector<Array>& arrays) {
    std::vector<XLA_FFI_Buffer> found;
    for (const Array& a : arrays)
      found.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, a.type, a.memory.get(),
                       static_cast<int64_t>(a.shape.size()), const_cast<int64_t*>(a.shape.data())});
    return found;
  };
  const auto places_of = [](auto& things) {
    std::vector<void*> found;
    for (auto& thing : things) found.push_back(&thing);
    return found;
  };
  std::vector<XLA_FFI_Buffer> in = buffers_of(operands), out = buffers_of(results);
  std::vector<XLA_FFI_ArgType> in_types(in.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> out_types(out.size(), XLA_FFI_RetType_BUFFER);
  std::vector<XLA_FFI_AttrType> attribute_types(attributes.size(), XLA_FFI_AttrType_SCALAR);
  std::vector<XLA_FFI_ByteSpan> names;
  std::vector<XLA_FFI_Scalar> scalars;
  for (const Attribute& a : attributes) {
    names.push_back({a.name.data(), a.name.size()});
    scalars.push_back({a.type, const_cast<int64_t*>(&a.value)});
  }
  std::vector<XLA_FFI_ByteSpan*> name_at;
  for (auto& name : names) name_at.push_back(&name);
  std::vector<void*> in_at = places_of(in), out_at = places_of(out), scalar_at = places_of(scalars);
  XLA_FFI_ExecutionContext pool{threads, {}, {}};
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE, frame.api = &api(), frame.ctx = &pool;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(in.size()), in_types.data(),
                in_at.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(out.size()), out_types.data(),
                out_at.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr,        static_cast<int64_t>(attributes.size()),
                 attribute_types.data(),    name_at.data(), scalar_at.data()};
  const std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
  for (std::thread& thread : pool.started) thread.join();
  threads_started += static_cast<int64_t>(pool.started.size());
  return error ? error->message : "";
}

// Whether one thread and four, twice, give the same bits, and every number has been written. Prints a line.
inline bool agree(const std::string& name, Handler handler, const std::vector<Array>& operands,
                  const std::vector<Array>& shapes, const std::vector<Attribute>& attributes) {
  std::vector<std::vector<Array>> found;
  std::string fault;
  for (int64_t threads : {1, 4, 4}) {
    std::vector<Array> results;
    for (const Array& shape : shapes) results.emplace_back(shape.type, shape.shape);
    if (const std::string error = call(handler, operands, results, attributes, threads); !error.empty())
      fault = error;
    found.push_back(results);
  }
  double total = 0;
  for (size_t r = 0; r < shapes.size() && fault.empty(); ++r) {
    const Array& one = found[0][r];
    const std::vector<char> untouched(one.size(), static_cast<char>(0xff));
    for (int64_t i = 0; i < one.count(); ++i) {
      if (!std::memcmp(one.memory.get() + i * one.size(), untouched.data(), one.size()))
        fault = "a number is NOT WRITTEN";
      total += one[i] * one[i];
    }
    for (const auto& other : found)
      if (std::memcmp(one.memory.get(), other[r].memory.get(), one.bytes())) fault = "threads DIFFER";
  }
  if (fault.empty() && !(total < INFINITY)) fault = "NOT FINITE";
  std::printf("%s: %.10g%s%s\n", name.c_str(), std::sqrt(total), fault.empty() ? "" : "  ", fault.c_str());
  return fault.empty();
}

}  // namespace stand_in
