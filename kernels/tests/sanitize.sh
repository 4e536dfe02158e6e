#!/usr/bin/env bash
# Build the kernels with sanitizers and run them:
#   address  the drivers of this folder, with AddressSanitizer and UndefinedBehaviorSanitizer
#   thread   the same with ThreadSanitizer
#   python   the tests that call the library, with the first two, in an interpreter and a jaxlib that are not
#            instrumented; other files and options of pytest may follow
# All of them without a word. Needs CMake, GCC, and PYTHON with jax, whose headers are used (and this checkout installed,
# for its tests). BUILD names a folder in which what is compiled is kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(command -v "${PYTHON:-python3}")
if [ -z "${BUILD:-}" ]; then
  BUILD=$(mktemp -d)
  trap 'rm -rf "$BUILD"' EXIT
fi
headers=$("$python" -c 'from jax import ffi; print(ffi.include_dir())')

build() { # build NAME FLAG...: the library, its baseline code alone
  mkdir -p "$BUILD/$1"
  cmake -S kernels -B "$BUILD/$1" -DPython_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=None -DJAXGLMM_BASELINE_ONLY=ON \
    -DJAXGLMM_ARCH_FLAGS="-O1 -g1" -DCMAKE_CXX_FLAGS="${*:2} -fno-omit-frame-pointer" >"$BUILD/$1/log" || {
    cat "$BUILD/$1/log"
    exit 1
  }
  cmake --build "$BUILD/$1" -j "$(nproc)" | tail -n 1
}

drive() { # drive NAME FLAG...: each driver, linked with the library's objects
  local objects
  mapfile -t objects < <(find "$BUILD/$1/CMakeFiles" -path '*jaxglmm_*.o')
  for driver in kernels/tests/*_driver.cc; do
    local program=$BUILD/$1/$(basename "$driver" .cc)
    "${CXX:-c++}" "${@:2}" -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -Ikernels/include -Ikernels/cpu \
      -isystem "$headers" "$driver" "${objects[@]}" -pthread -o "$program"
    echo "== $1: $(basename "$driver")"
    "$program"
  done
}

address=(-fsanitize=address,undefined -fno-sanitize-recover=all)
tests() {
  local runtime
  runtime="$("${CXX:-c++}" -print-file-name=libasan.so) $("${CXX:-c++}" -print-file-name=libstdc++.so)"
  mkdir -p "$BUILD/package/_kernels"
  cp "$BUILD/address/_jaxglmm_cpu.so" "$BUILD/package/_kernels"
  # XLA's compiler without its optimisations, as tests have it otherwise, makes code that reads 8 bytes behind an array.
  LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 XLA_FLAGS='' \
    "$python" kernels/tests/instrumented.py "$BUILD/package" "$@"
}

kinds=("${1:-all}")
for kind in "${kinds[@]/all/address thread python}"; do
  for each in $kind; do
    case $each in
      address) build address "${address[@]}" && drive address "${address[@]}" ;;
      thread) build thread -fsanitize=thread && drive thread -fsanitize=thread ;;
      python) build address "${address[@]}" && tests "${@:2}" ;;
      *) echo "$each: expected address, thread or python" && exit 2 ;;
    esac
  done
done
