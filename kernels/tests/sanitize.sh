#!/usr/bin/env bash
# Build the driver with a sanitizer and run it: address, undefined, thread, or all three in turn.
#   CXX names the compiler; nothing but a C++17 compiler is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

flags=(-std=c++17 -O1 -g -fno-omit-frame-pointer -ffp-contract=fast -fno-math-errno -Wall -Wextra -Iinclude -Icpu
       -DJAXGLMM_TARGET=baseline -DJAXGLMM_LANES=2)
for kind in "${@:-address undefined thread}"; do
  for sanitizer in $kind; do
    check=("-fsanitize=$sanitizer" -fno-sanitize-recover=all)
    objects=()
    for effects in 1 2 3; do
      objects+=("$scratch/$sanitizer-$effects.o")
      "${CXX:-c++}" "${flags[@]}" "${check[@]}" "-DJAXGLMM_EFFECTS=$effects" -c cpu/fused_effects.cc -o "${objects[-1]}"
    done
    for effects in 1 2; do
      objects+=("$scratch/$sanitizer-lanes-$effects.o")
      "${CXX:-c++}" "${flags[@]}" "${check[@]}" "-DJAXGLMM_EFFECTS=$effects" -c cpu/lane_effects.cc -o "${objects[-1]}"
    done
    "${CXX:-c++}" "${flags[@]}" "${check[@]}" cpu/fused_target.cc cpu/lane_target.cc cpu/rows_target.cc \
      cpu/lane_pass.cc cpu/target.cc tests/sweep_driver.cc "${objects[@]}" \
      -pthread -o "$scratch/driver-$sanitizer"
    echo "== $sanitizer"
    "$scratch/driver-$sanitizer"
  done
done
