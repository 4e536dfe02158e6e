#!/usr/bin/env bash
# Cross-compile the library for arm64, and run the driver there under QEMU against the numbers of this machine: every sum
# must agree to 1e-9, and exp, log and log1p be exact to 2 units in the last place on both.
#   Needs aarch64-linux-gnu-g++, qemu-aarch64, cmake, and PYTHON with jax, whose headers are used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cross=aarch64-linux-gnu

cmake -S . -B "$scratch/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=$cross-g++ -DPython_EXECUTABLE="$(command -v "${PYTHON:-python3}")" >"$scratch/log" || {
  cat "$scratch/log"
  exit 1
}
cmake --build "$scratch/build" -j "$(nproc)" | tail -n 1
$cross-readelf -h "$scratch/build/_jaxglmm_cpu.so" | grep Machine
flags=(-std=c++17 -O1 -ffp-contract=fast -fno-math-errno -Wall -Wextra -Iinclude -Icpu -DJAXGLMM_TARGET=baseline
       -DJAXGLMM_LANES=2)
objects=$scratch/build/CMakeFiles/jaxglmm_baseline.dir
$cross-g++ "${flags[@]}" tests/sweep_driver.cc cpu/lane_pass.cc cpu/target.cc "$objects"/baseline_*.o \
  "$objects"/cpu/{fused,lane,rows}_target.cc.o -pthread -static -o "$scratch/driver-arm64"
here=()
build() { # build NAME SOURCE FLAG...: for this machine
  here+=("$scratch/$1.o")
  "${CXX:-c++}" "${flags[@]}" "${@:3}" -c "$2" -o "$scratch/$1.o"
}
for effects in 1 2 3; do build $effects cpu/fused_effects.cc -DJAXGLMM_EFFECTS=$effects; done
for effects in 1 2; do build lanes-$effects cpu/lane_effects.cc -DJAXGLMM_EFFECTS=$effects; done
"${CXX:-c++}" "${flags[@]}" tests/sweep_driver.cc cpu/{fused_target,lane_target,rows_target,lane_pass,target}.cc \
  "${here[@]}" -pthread -o "$scratch/driver"

"$scratch/driver" >"$scratch/here"
qemu-aarch64 "$scratch/driver-arm64" >"$scratch/arm64"
awk -F '[:,] *' '
  function apart(a, b) { return a - b > 1e-9 * (b < 0 ? -b : b) || b - a > 1e-9 * (b < 0 ? -b : b) }
  NR == FNR { here[FNR] = $0; count = FNR; value[FNR] = $(NF - 1); sums[FNR] = $NF; next }
  { sub(/sums /, "", $NF); sub(/sums /, "", sums[FNR]); lines = FNR }
  /ulp/ { print "arm64 " $0; print "here  " here[FNR]; next }
  apart($(NF - 1), value[FNR]) || apart($NF, sums[FNR]) { print "arm64 " $0 "; here " here[FNR]; bad = 1 }
  END { print lines " lines, " (bad ? "which DIFFER" : "which agree to 1e-9"); exit bad || lines != count }
' "$scratch/here" "$scratch/arm64"
