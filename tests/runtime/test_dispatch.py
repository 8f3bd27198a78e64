"""Instruction sets: which are available, that a chosen one is really used, errors for bad names."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import ffncore as fc

KNOWN = ("scalar", "avx2", "avx512", "avx512bf16")
CALL = """if True:
    import numpy as np, ffncore as fc
    x = np.ones((2, 3), np.float32)
    w = fc.FFNWeights(up=np.ones((5, 3), np.float32), down=np.ones((3, 5), np.float32))
    fc.ffn(x, w, activation="relu")
    print(fc.active_isa())
"""


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_available():
    isas = fc.available_isas()
    assert isas[0] == "scalar"
    assert list(isas) == [isa for isa in KNOWN if isa in isas]
    assert fc.active_isa() in isas


def test_available_fits_the_cpu():
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        (flags, *_) = (line.split(":")[1].split() for line in file if line.startswith("flags"))
    assert set(fc.cpu_features()) <= {flag.replace("avx512_", "avx512") for flag in flags}
    built_with_all = len(fc.available_isas()) > 1
    if built_with_all:
        assert ("avx2" in fc.available_isas()) == {"avx2", "fma", "f16c"}.issubset(flags)


def test_using_isa_switches_and_restores():
    before = fc.active_isa()
    for isa in fc.available_isas():
        with fc.using_isa(isa) as active:
            assert active == isa == fc.active_isa()
            with fc.using_isa("scalar"):
                assert fc.active_isa() == "scalar"
            assert fc.active_isa() == isa
        assert fc.active_isa() == before
    with pytest.raises(KeyError), fc.using_isa("scalar"):
        raise KeyError
    assert fc.active_isa() == before


def test_using_isa_holds_in_other_threads():
    seen = []
    with fc.using_isa("scalar"):
        thread = threading.Thread(target=lambda: seen.append(fc.active_isa()))
        thread.start()
        thread.join()
    assert seen == ["scalar"]


def test_unknown_name():
    before = fc.active_isa()
    with pytest.raises(ValueError, match=r'name is "avx9".*"scalar"'), fc.using_isa("avx9"):
        pass
    with pytest.raises(TypeError, match="name is of type int"), fc.using_isa(512):
        pass
    assert fc.active_isa() == before


@pytest.mark.parametrize("isa", KNOWN)
def test_environment_forces_one_or_raises(isa):
    # FFNCORE_VERBOSE prints the instruction set that the call used, not only the setting.
    done = python(CALL, FFNCORE_ISA=isa, FFNCORE_VERBOSE="1")
    if isa in fc.available_isas():
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == isa
        assert f" isa={isa} " in done.stdout + done.stderr
    else:
        assert done.returncode != 0
        assert f'FFNCORE_ISA is "{isa}"' in done.stderr


def test_unknown_environment_raises_one_clear_sentence():
    done = python(CALL, FFNCORE_ISA="sse9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert 'FFNCORE_ISA is "sse9"' in last
    assert all(f'"{isa}"' in last for isa in fc.available_isas())


def test_empty_environment_is_the_default():
    done = python(CALL, FFNCORE_ISA="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == fc.available_isas()[-1]


def test_same_bits():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((19, 70))
    w = fc.FFNWeights(gate=rng.standard_normal((90, 70)), up=rng.standard_normal((90, 70)),
                      down=rng.standard_normal((70, 90)))  # fmt: skip
    results = []
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            results.append(fc.ffn(x, w, activation="silu"))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_show_config(capsys):
    fc.show_config()
    text = capsys.readouterr().out
    for expected in (fc.__version__, fc.active_isa(), str(fc.get_num_threads()), np.__version__):
        assert expected in text
