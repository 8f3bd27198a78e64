"""Thread counts: their defaults and how to set them; concurrent calls, and calls after a fork."""

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import ffncore as fc


def layer(seed=0, tokens=130, d=192, f=320):
    """A call that is large enough for several threads, which 24 million multiply-adds are."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    return draw(tokens, d), fc.FFNWeights(gate=draw(f, d), up=draw(f, d), down=draw(d, f))


def python(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def restored():
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)


def test_set_and_get():
    fc.set_num_threads(3)
    assert fc.get_num_threads() == 3
    fc.set_num_threads(0)
    assert fc.get_num_threads() >= 1


def test_context_manager_restores_also_after_an_error():
    fc.set_num_threads(2)
    two = fc.num_threads(5)
    with two:
        assert fc.get_num_threads() == 5
        with two, fc.num_threads(1):
            assert fc.get_num_threads() == 1
        assert fc.get_num_threads() == 5
    assert fc.get_num_threads() == 2
    with pytest.raises(KeyError), fc.num_threads(4):
        raise KeyError
    assert fc.get_num_threads() == 2


@pytest.mark.parametrize("bad, error", [(-1, ValueError), (2**31, ValueError), (1.5, TypeError)])
def test_bad_numbers(bad, error):
    for call in (fc.set_num_threads, fc.num_threads):
        with pytest.raises(error, match="expected an integer"):
            call(bad)


def test_numpy_integers_are_integers_and_bool_is_not():
    fc.set_num_threads(np.int64(2))
    assert fc.get_num_threads() == 2
    with pytest.raises(TypeError, match="expected an integer"):
        fc.set_num_threads(True)


def test_environment():
    code = "import ffncore as fc; print(fc.get_num_threads())"
    assert python(code, FFNCORE_NUM_THREADS="3") == "3"
    default = python(code, FFNCORE_NUM_THREADS="")
    assert python(code, FFNCORE_NUM_THREADS="many") == default


def test_default_is_within_the_affinity_mask():
    allowed = os.sched_getaffinity(0)
    code = "import ffncore as fc; print(fc.get_num_threads())"
    assert 1 <= int(python(code, FFNCORE_NUM_THREADS="")) <= len(allowed)
    one = f"import os; os.sched_setaffinity(0, [{min(allowed)}]); " + code
    assert python(one, FFNCORE_NUM_THREADS="") == "1"


def test_workers_start_with_the_first_call_that_wants_them():
    code = """if True:
        import os, numpy as np, ffncore as fc
        count = lambda: len(os.listdir("/proc/self/task"))
        before = count()
        x = np.ones((64, 512), np.float32)
        up = np.ones((2048, 512), np.float32)
        w = fc.FFNWeights(up=up, down=up.T)
        with fc.num_threads(1):
            fc.ffn(x, w, activation="relu")
        one = count()
        with fc.num_threads(3):
            fc.ffn(x, w, activation="relu")
        print(one - before, count() - before)
    """
    assert python(code) in ("0 1", "0 2")  # a plan may use fewer threads than are available


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_same_bits(threads):
    x, w = layer()
    with fc.num_threads(1):
        expected = fc.ffn(x, w, activation="silu")
    with fc.num_threads(threads):
        for _ in range(20):
            np.testing.assert_array_equal(fc.ffn(x, w, activation="silu"), expected)


def test_concurrent_callers():
    # The call with one token also uses all threads, because of its 0.7 MB of weights.
    cases = [layer(seed, tokens=1 + 13 * seed) for seed in range(6)]
    expected = [fc.ffn(x, w, activation="gelu") for x, w in cases]
    wrong = []

    def caller(i):
        x, w = cases[i]
        for _ in range(50):
            if not np.array_equal(fc.ffn(x, w, activation="gelu"), expected[i]):
                wrong.append(i)

    with fc.num_threads(2):
        callers = [threading.Thread(target=caller, args=(i,)) for i in range(len(cases))]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(timeout=120)
            assert not thread.is_alive()
    assert not wrong


def child_computes(connection, x, w):
    connection.send(fc.ffn(x, w, activation="silu"))
    connection.close()


def test_child_of_a_fork_computes():
    x, w = layer()
    with fc.num_threads(2), warnings.catch_warnings():
        # Python warns about forks in a process with threads; this test shows that it is safe here.
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = fc.ffn(x, w, activation="silu")
        context = multiprocessing.get_context("fork")
        for _ in range(2):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=child_computes, args=(theirs, x, w))
            child.start()
            assert ours.poll(60)
            np.testing.assert_array_equal(ours.recv(), expected)
            child.join(60)
            assert child.exitcode == 0
        np.testing.assert_array_equal(fc.ffn(x, w, activation="silu"), expected)


def test_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    fc.threads.register_threadpoolctl()
    fc.threads.register_threadpoolctl()
    fc.set_num_threads(2)
    (info,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "ffncore"]
    assert info["num_threads"] == 2
    assert info["version"] == fc.__version__
    assert info["isa"] == fc.active_isa()
    with threadpoolctl.threadpool_limits(limits=1, user_api="ffncore"):
        assert fc.get_num_threads() == 1
    assert fc.get_num_threads() == 2


def test_threadpoolctl_imported_first_is_told_at_import():
    pytest.importorskip("threadpoolctl")
    code = """if True:
        import threadpoolctl, ffncore
        print(any(i["user_api"] == "ffncore" for i in threadpoolctl.threadpool_info()))
    """
    assert python(code) == "True"
