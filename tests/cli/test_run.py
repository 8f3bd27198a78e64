"""`python -m ffncore run`: y is that of the layer, and a refusal is one sentence."""

import io

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore.__main__ import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path, llama(3), LLAMA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_x(*shape, dtype=np.float32, name="x.npy"):
    x = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    np.save(name, x)
    return x


def refusal(capsys, *argv):
    assert main(["run", *argv]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("run: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("run: ").strip()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_y_is_that_of_the_layer(folder, shape, capsys):
    x = save_x(*shape)
    assert main(["run", ".", "--layer", "2", "x.npy", "y.npy"]) == 0
    y = np.load("y.npy", allow_pickle=False)
    assert y.dtype == np.float32
    assert np.array_equal(y, fc.load(folder, 2)(x))
    told = ", ".join(map(str, shape))
    assert capsys.readouterr().out == (
        f"FFN(model.layers.2: 4 -> 6 -> 4, silu, gated, float32): y [{told}] float32 in y.npy\n"
    )


def test_the_first_layer_is_the_default_and_options_may_stand_anywhere(folder):
    x = save_x(3, 4)
    assert main(["run", "--threads", "1", ".", "--isa", "scalar", "x.npy", "y.npy"]) == 0
    assert np.array_equal(np.load("y.npy"), fc.load(folder)(x))


def test_a_mixture(folder):
    write(folder, deepseek_v3(1), DEEPSEEK_V3)
    x = save_x(3, 4)
    assert main(["run", ".", "x.npy", "y.npy"]) == 0
    assert np.array_equal(np.load("y.npy"), fc.load(folder)(x))


def test_options_of_load(folder):
    x = save_x(3, 4, dtype=np.float64)
    tensors = llama(1)
    write(folder, {**tensors, **{f"b.{n}": t + 1 for n, t in tensors.items()}}, {"model_type": "o"})
    options = ["--family", "llama", "--prefix", "b.model.", "--activation", "relu"]
    assert main(["run", ".", "x.npy", "y.npy", *options, "--dtype", "float64"]) == 0
    layer = fc.load(folder, family="llama", prefix="b.model.", activation="relu", dtype="float64")
    assert np.array_equal(np.load("y.npy"), layer(x))


def test_y_has_the_name_that_was_given_and_replaces_a_file(folder):
    x = save_x(3, 4)
    for _ in range(2):
        assert main(["run", ".", "x.npy", "x.npy"]) == 0
    layer = fc.load(folder)
    assert np.array_equal(np.load("x.npy"), layer(layer(x)))
    assert main(["run", ".", "x.npy", "result"]) == 0
    assert sorted(path.name for path in folder.glob("result*")) == ["result"]


def test_bfloat16_is_stored_as_raw_bytes(folder):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    write(folder, llama(1, dtype=bfloat16), LLAMA)
    x = save_x(3, 4, dtype=bfloat16)
    assert np.load("x.npy").dtype == "V2"
    assert main(["run", ".", "x.npy", "y.npy"]) == 0
    assert np.array_equal(np.load("y.npy").view(bfloat16), fc.load(folder)(x))
    x = save_x(3, 4)
    assert main(["run", ".", "x.npy", "y.npy"]) == 0
    assert np.array_equal(np.load("y.npy"), fc.load(folder)(x))


def test_wrong_arrays(folder, capsys):
    save_x(3, 5)
    assert "x has shape (3, 5); expected a last dimension of 4" in refusal(
        capsys, ".", "x.npy", "y.npy"
    )
    save_x(3, 4, dtype=np.float64)
    assert "x has dtype float64; expected float32" in refusal(capsys, ".", "x.npy", "y.npy")
    np.save("x.npy", np.ones((3, 4), "V2"))
    assert "x has dtype" in refusal(capsys, ".", "x.npy", "y.npy")
    assert not (folder / "y.npy").exists()


class Trap:
    """Ends the tests if it is unpickled."""

    def __reduce__(self):
        return pytest.exit, ("unpickled",)


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


GOOD = npy(np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "x.npy is not a .npy file; expected one that np.save wrote"),
        (b"PK\3\4 an archive", "x.npy is not a .npy file"),
        (npy(np.array([Trap()])), "x.npy cannot be read: Object arrays cannot be loaded"),
        (GOOD[:-1], "x.npy cannot be read: "),
        (GOOD[:20], "x.npy cannot be read: "),
        (GOOD.replace(b"(3, 4)", b"(9, 4)"), "x.npy cannot be read: "),
        (GOOD.replace(b"(3, 4), }       ", b"(9" + b"9" * 12 + b",)}"), "x.npy cannot be read: "),
        (GOOD.replace(b"<f4", b"<q9"), "x.npy cannot be read: "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_files_that_are_no_array(data, sentence, capsys):
    with open("x.npy", "wb") as file:  # noqa: PTH123
        file.write(data)
    assert refusal(capsys, ".", "x.npy", "y.npy").startswith(sentence)


@pytest.mark.usefixtures("folder")
def test_paths(capsys):
    sentence = "x.npy does not exist; expected a .npy file"
    assert refusal(capsys, ".", "x.npy", "y.npy") == sentence
    assert refusal(capsys, ".", ".", "y.npy") == (
        ". cannot be read: Is a directory; expected a file"
    )
    save_x(3, 4)
    sentence = "absent is not a folder; expected one to write absent/y.npy to"
    assert refusal(capsys, "nowhere", "x.npy", "absent/y.npy") == sentence
    assert refusal(capsys, ".", "x.npy", ".") == ". cannot be written: Is a directory"
    assert "nowhere does not exist" in refusal(capsys, "nowhere", "x.npy", "y.npy")


@pytest.mark.usefixtures("folder")
def test_wrong_options(capsys):
    save_x(3, 4)
    files = (".", "x.npy", "y.npy")
    assert "layer 7 is not in" in refusal(capsys, *files, "--layer", "7")
    assert "prefix is 'x'; expected one of" in refusal(capsys, *files, "--prefix", "x")
    assert "family is 'x'; expected one of" in refusal(capsys, *files, "--family", "x")
    assert "activation 'x' is not known" in refusal(capsys, *files, "--activation", "x")
