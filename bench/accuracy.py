"""Measures the error of every activation and writes docs/accuracy.md.

    python bench/accuracy.py [--stride 61] [--print]

It builds tests/cpp/accuracy.cpp, which includes the source of the kernels, for the best instruction
set of this machine. --stride 1 measures every float, which takes about an hour.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "cpp" / "accuracy.cpp"
TABLE = ROOT / "docs" / "accuracy.md"

# As CMakeLists.txt compiles the kernels: an fma only where the source has one.
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno"]
AVX2 = ["avx2", "fma", "f16c"]
AVX512 = [*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq"]


def features():
    """The -m flags of the best level of this CPU; none for the scalar level."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    have = set(found.group(1).split()) if found else set()
    level = next((names for names in (AVX512, AVX2) if have.issuperset(names)), [])
    return [f"-m{name}" for name in level]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--stride",
        type=int,
        default=61,
        metavar="N",
        help="measure every N-th float (default: %(default)s)",
    )
    parser.add_argument("--print", action="store_true", help="print the table and write no file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "accuracy"
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        subprocess.run([*compiler, *FLAGS, *features(), SOURCE, "-o", program], check=True)
        run = subprocess.run([program, str(options.stride)], stdout=subprocess.PIPE, text=True)
    if options.print:
        print(run.stdout, end="")
    else:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(run.stdout)
        print(f"wrote {TABLE.relative_to(ROOT)}")
    if run.returncode:
        print("accuracy: an error is above its limit in tests/cpp/accuracy.cpp", file=sys.stderr)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
