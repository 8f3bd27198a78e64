"""`python -m ffncore verify`: right gradients pass; wrong ones and unreadable layers fail."""

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore.__main__ import main
from ffncore.cli import verify


def lines(capsys, folder, *options, status=0):
    assert main(["verify", str(folder), *options]) == status
    return capsys.readouterr().out.splitlines()


def test_right_gradients(tmp_path, capsys):
    write(tmp_path, llama(3), LLAMA)
    head, *rows, end = lines(capsys, tmp_path)
    assert head.split() == ["layer", "kind", "error", "array", "result", "seconds"]
    assert end == "verify passed: 3 layers"
    for number, row in enumerate(rows):
        layer, kind, gate, error, array, result, _, prefix = row.split()
        assert (layer, kind, gate, result, prefix) == (
            str(number),
            "dense,",
            "gated",
            "passed",
            "model.",
        )
        assert 0 < float(error) <= verify.TOLERANCE
        assert array in ("x", "gate", "up", "down")


def test_one_layer(tmp_path, capsys):
    write(tmp_path, llama(3), LLAMA)
    _, row, end = lines(capsys, tmp_path, "--layer", "1", "--threads", "1")
    assert row.split()[0] == "1"
    assert end == "verify passed: 1 layer"


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_weights_of_any_dtype(dtype, tmp_path, capsys):
    pytest.importorskip("ml_dtypes")
    write(tmp_path, llama(1, dtype=np.dtype(dtype)), LLAMA)
    assert lines(capsys, tmp_path)[-1] == "verify passed: 1 layer"


def test_a_mixture(tmp_path, capsys):
    write(tmp_path, deepseek_v3(1), DEEPSEEK_V3)
    _, row, shared, end = lines(capsys, tmp_path)
    assert shared.split()[1:3] == ["part", "mlp.shared_experts"]
    assert row.split()[1:5] == ["mixture", "of", "8,", "gated,"]
    assert end == "verify passed: 1 layer"


def test_two_models_in_one_file(tmp_path, capsys):
    tensors = llama(1)
    write(tmp_path, {**tensors, **{f"b.{n}": t for n, t in tensors.items()}}, LLAMA)
    prefixes = [row.split()[-1] for row in lines(capsys, tmp_path)[1:-1]]
    assert prefixes == ["b.model.", "model."]
    assert len(lines(capsys, tmp_path, "--prefix", "b.model.")) == 3


@pytest.mark.parametrize("name", ["x", "gate", "up", "down"])
def test_a_wrong_gradient(name, tmp_path, capsys, monkeypatch):
    """Of one entry that is not the largest."""
    right = fc.FFN.backward

    def wrong(self, grad_y, saved, **options):
        grads = right(self, grad_y, saved, **options)
        array = grads.arrays().get(name)
        if array is not None:
            place = np.unravel_index(np.abs(array).argmin(), array.shape)
            array[place] += 1e-4 * np.abs(array).max()
        return grads

    monkeypatch.setattr(fc.FFN, "backward", wrong)
    write(tmp_path, llama(2), LLAMA)
    _, *rows, end = lines(capsys, tmp_path, status=1)
    assert [row.split()[4:6] for row in rows] == [[name, "failed"]] * 2
    assert end == "verify failed: 2 of 2 layers"


def test_a_gradient_that_is_not_a_number(tmp_path, capsys, monkeypatch):
    right = fc.FFN.backward

    def wrong(self, grad_y, saved, **options):
        grads = right(self, grad_y, saved, **options)
        for array in grads.arrays().values():
            array[...] = np.nan
        return grads

    monkeypatch.setattr(fc.FFN, "backward", wrong)
    write(tmp_path, llama(1), LLAMA)
    row = lines(capsys, tmp_path, status=1)[1]
    assert row.split()[3] == "nan"


def test_every_array_is_checked_and_has_its_values_again():
    rng = np.random.default_rng(0)
    up, down, bias = rng.standard_normal((24, 8)), rng.standard_normal((8, 24)), np.zeros(24)
    layer = fc.FFN(fc.FFNWeights(up=up, down=down, b_up=bias), "gelu")
    before = {name: array.copy() for name, array in layer.parameters().items()}
    assert [*before] == ["up", "down", "b_up"]
    error, name = verify.largest_error(layer, seed=1)
    assert 0 < error <= verify.TOLERANCE
    assert name in ("x", *before)
    for name, array in layer.parameters().items():
        assert np.array_equal(array, before[name])
    assert layer.packed().parameters() == {}


def test_a_kink_is_tried_again(monkeypatch):
    """The first x has hidden units at the kink of relu, where differences are wrong."""
    rng = np.random.default_rng(0)
    layer = fc.FFN(
        fc.FFNWeights(up=rng.standard_normal((24, 8)), down=rng.standard_normal((8, 24))), "relu"
    )
    tried = []
    right = verify._error

    def at_the_kink(layer, x, name, seed):
        if not tried:
            x[...] = 0
        tried.append(name)
        return right(layer, x, name, seed)

    monkeypatch.setattr(verify, "_error", at_the_kink)
    assert verify.largest_error(layer, seed=1)[0] <= verify.TOLERANCE
    assert tried == ["x", "x", "up", "down"]


def test_layers_that_cannot_be_read(tmp_path, capsys):
    tensors = llama(3)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write(tmp_path, tensors, LLAMA)
    _, *rows, end = lines(capsys, tmp_path, status=1)
    assert "not checked: " in rows[1]
    assert "has no tensor model.layers.1.mlp.up_proj.weight" in rows[1]
    assert [row.split()[5] for row in (rows[0], rows[2])] == ["passed", "passed"]
    assert end == "verify failed: 1 of 3 layers"


def test_what_is_not_there(tmp_path, capsys):
    write(tmp_path, llama(2), LLAMA)
    for options, sentence in (
        (["--layer", "5"], "layer 5 is not in"),
        (["--prefix", "x"], "prefix is 'x'; expected one of"),
        (["--family", "bert"], "has no feed-forward layer that ffncore knows"),
    ):
        assert main(["verify", str(tmp_path), *options]) == 2
        assert f"verify: {sentence}" in capsys.readouterr().err.replace(str(tmp_path), "").replace(
            "/model.safetensors ", ""
        )
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
