#!/bin/sh
# All checks and times on a machine with an NVIDIA GPU, within 8 minutes. It builds both libraries for
# this GPU and runs `pytest -m gpu`, compute-sanitizer on small sizes, and bench/gpu.py, which compares
# with torch. A short table comes last; the exit status is 1 if a test fails.
#
#     bench/gpu.sh [FOLDER]          the folder of the results (default: build/gpu-results)
#
# It needs nvcc >= 12.4, cmake, and a python3 (PYTHON=...) with numpy, cffi, pybind11, pytest,
# ml_dtypes and torch; CuPy is tested if it is installed. It installs and fetches nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu-results}
python=${PYTHON:-python3}
package=build/gpu-package
mkdir -p "$out" "$package/ffncore/include"
status=0

say() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - began))"; }
began=$(date +%s)

for module in numpy cffi pybind11 pytest ml_dtypes torch; do
    "$python" -c "import $module" || { echo "$python has no $module"; exit 1; }
done
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv | tee "$out/gpu.csv"

say build
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
cmake -S . -B build/gpu -DFFNCORE_PYTHON=ON -DFFNCORE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$arch" \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    -DCMAKE_INSTALL_RPATH='$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON > "$out/build.log" 2>&1 &&
    timeout 240 cmake --build build/gpu -j "$(nproc)" >> "$out/build.log" 2>&1 ||
    { tail -n 40 "$out/build.log"; exit 1; }
cp -r python/ffncore/. "$package/ffncore/"
cp csrc/include/*.h "$package/ffncore/include/"
cp build/gpu/_core*.so build/gpu/libffncore.so build/gpu/libffncore_cuda.so "$package/ffncore/"
PYTHONPATH=$PWD/$package
export PYTHONPATH

say tests
(cd tests && timeout 150 "$python" -m pytest -q -m gpu -p no:cacheprovider backends/test_gpu.py) \
    > "$out/tests.log" 2>&1 || status=1
tail -n 12 "$out/tests.log"

say compute-sanitizer
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        (cd tests && timeout 45 compute-sanitizer --tool $tool --error-exitcode 9 \
            "$python" -m pytest -q -m gpu -p no:cacheprovider backends/test_gpu.py \
            -k 'every_kernel and torch') \
            > "$out/$tool.log" 2>&1
        code=$?
        echo "$tool: exit $code (0: nothing found; 9: errors; 124: not done in time)"
        [ $code -eq 9 ] && { status=1; grep -m 10 '=========' "$out/$tool.log"; }
    done
else
    echo "there is none here"
fi

say benchmark
left=$((470 - ($(date +%s) - began)))
[ $left -lt 120 ] && left=120
# The last case may begin a minute before the end: torch.compile takes most of that.
timeout $left "$python" bench/gpu.py --json "$out/gpu.jsonl" --seconds $((left - 60)) \
    2> "$out/bench.log" || { status=1; tail -n 20 "$out/bench.log"; }

say "done; tests: $(tail -n 1 "$out/tests.log")"
exit $status
