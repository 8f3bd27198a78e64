"""The tensors of a layer: dtypes that do not fit each other, and tensors that are not used."""

import numpy as np
import pytest
from support import BFLOAT16
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore import models

HALF = np.dtype(np.float16)
NARROW = [HALF, *BFLOAT16]
START = "model.layers.1.mlp."


def gpt_oss():
    rng = np.random.default_rng(5)
    shapes = {"router.weight": (4, 2), "router.bias": (4,)}
    shapes |= {"experts.gate_up_proj": (4, 2, 6), "experts.gate_up_proj_bias": (4, 6)}
    shapes |= {"experts.down_proj": (4, 3, 2), "experts.down_proj_bias": (4, 2)}
    return {START + n: rng.standard_normal(s).astype("f4") for n, s in shapes.items()}


def biased():
    tensors = llama()
    for name, size in (("gate_proj", 6), ("up_proj", 6), ("down_proj", 4)):
        tensors[f"{START}{name}.bias"] = np.arange(size, dtype=np.float32)
    return tensors


MODELS = {
    "llama": (biased, LLAMA),
    "deepseek_v3": (deepseek_v3, DEEPSEEK_V3),
    "gpt_oss": (gpt_oss, {"model_type": "gpt_oss"}),
}
DENSE = [("llama", f"{name}_proj.weight") for name in ("gate", "up", "down")]
EXPERTS = [("deepseek_v3", f"experts.{e}.{n}_proj.weight") for e, n in ((0, "gate"), (7, "down"))]
EXPERTS += [("deepseek_v3", "experts.3.up_proj.weight"), ("gpt_oss", "experts.gate_up_proj")]
SHARED = [("deepseek_v3", f"shared_experts.{n}_proj.weight") for n in ("gate", "up", "down")]
STACKED = [("gpt_oss", "experts.down_proj")]
MATRICES = DENSE + EXPERTS + SHARED + STACKED
BIASES = [("llama", "up_proj.bias"), ("llama", "down_proj.bias")]
BIASES += [("gpt_oss", f"experts.{n}_proj_bias") for n in ("gate_up", "down")]
ROUTERS = [("deepseek_v3", "gate.weight"), ("gpt_oss", "router.weight"), ("gpt_oss", "router.bias")]
CORRECTION = ("deepseek_v3", "gate.e_score_correction_bias")


def mixed(folder, model, name, dtype, others=np.float32):
    """A checkpoint in which one tensor has another dtype."""
    make, config = MODELS[model]
    tensors = {n: t.astype(others) for n, t in make().items()}
    tensors[START + name] = tensors[START + name].astype(dtype)
    return write(folder, tensors, config)


def converts(folder):
    for dtype in ("float32", "float64", "float16"):
        assert fc.load(folder, 1, dtype=dtype).dtype == np.dtype(dtype)


@pytest.mark.parametrize("model, name", MATRICES)
@pytest.mark.parametrize("dtype", [*NARROW, np.dtype(np.float64)], ids=str)
def test_matrices(tmp_path, model, name, dtype):
    mixed(tmp_path, model, name, dtype)
    with pytest.raises(
        ValueError, match=r"expected one dtype, or dtype= to convert them"
    ) as caught:
        fc.load(tmp_path, 1)
    text = str(caught.value)
    assert f"model.safetensors: {START}" in text
    assert name in text
    assert name in text
    assert {dtype.name, "float32"} <= set(text.replace(";", "").split())
    converts(tmp_path)
    assert models.layers(tmp_path)[-1].problem is None  # dtype= is enough to load it


@pytest.mark.parametrize("model, name", BIASES)
def test_biases(tmp_path, model, name):
    mixed(tmp_path, model, name, HALF)
    with pytest.raises(
        ValueError, match=rf": {START}.*{name} has dtype float16 and .* has float32"
    ):
        fc.load(tmp_path, 1)
    converts(tmp_path)
    mixed(tmp_path, model, name, np.float32, others=HALF)  # as the kernels accept them
    assert fc.load(tmp_path, 1).dtype == HALF


@pytest.mark.parametrize("model, name", ROUTERS)
def test_routers(tmp_path, model, name):
    mixed(tmp_path, model, name, np.float64)
    with pytest.raises(ValueError, match=rf": {START}{name} has dtype float64 and .* has float32"):
        fc.load(tmp_path, 1)
    converts(tmp_path)
    for dtype, others in ((HALF, np.float32), (np.float32, HALF)):
        mixed(tmp_path, model, name, dtype, others)
        assert fc.load(tmp_path, 1).dtype == others


def test_a_bias_of_selection(tmp_path):
    mixed(tmp_path, *CORRECTION, np.float64)
    with pytest.raises(ValueError, match=r"e_score_correction_bias has dtype float64 and .* has"):
        fc.load(tmp_path, 1)
    converts(tmp_path)
    mixed(tmp_path, *CORRECTION, np.float32, others=np.float64)
    x = np.ones((2, 4))
    assert fc.load(tmp_path, 1)(x).dtype == np.float64


@pytest.mark.parametrize(
    "model, name",
    [
        ("llama", "ffn_sub_norm.weight"),
        ("llama", "up_proj.lora_A.weight"),
        ("deepseek_v3", "experts.8.up_proj.weight"),
        ("deepseek_v3", "shared_experts.up_proj.bias"),
        ("deepseek_v3", "experts.0.up_proj.bias"),
        ("gpt_oss", "shared_expert.up_proj.weight"),
    ],
)
def test_what_no_one_takes_is_not_left_out(tmp_path, model, name):
    make, config = MODELS[model]
    write(tmp_path, {**make(), START + name: np.ones(3, "f4")}, config)
    with pytest.raises(ValueError, match=rf"{START}{name} is a tensor that ffncore does not use"):
        fc.load(tmp_path, 1)
    assert "does not use" in models.layers(tmp_path)[-1].problem


@pytest.mark.parametrize(
    "model, name, shape, expected",
    [
        ("llama", "up_proj.weight", (6, 5), r"\[f, d\] with f = 6, d = 4"),
        ("llama", "gate_proj.weight", (24,), r"\[f, d\]"),
        ("llama", "down_proj.bias", (5,), r"\[d\] with f = 6, d = 4"),
        ("deepseek_v3", "gate.weight", (8, 4, 1), r"\[E, d\]"),
        ("deepseek_v3", "gate.e_score_correction_bias", (7,), r"\[E\] with E = 8, d = 4"),
        ("deepseek_v3", "experts.7.down_proj.weight", (3, 4), r"\[d, f\] with E = 8, d = 4, f = 3"),
        ("deepseek_v3", "shared_experts.down_proj.weight", (4, 2), r"\[d, s\] with E = 8,"),
        ("gpt_oss", "experts.gate_up_proj", (4, 2, 5), r"\[E, d, 2f\] with E = 4, d = 2"),
        ("gpt_oss", "experts.gate_up_proj", (4, 6, 2), r"\[E, d, 2f\] with E = 4, d = 2"),
        ("gpt_oss", "experts.down_proj_bias", (2, 4), r"\[E, d\] with E = 4, d = 2, f = 3"),
    ],
)
def test_shapes(tmp_path, model, name, shape, expected):
    make, config = MODELS[model]
    write(tmp_path, {**make(), START + name: np.ones(shape, "f4")}, config)
    shown = repr(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"{START}{name} has shape {shown}; expected {expected}"):
        fc.load(tmp_path, 1, dtype="float64")


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_is_needed(tmp_path, model):
    make, config = MODELS[model]
    config = {**config, "mlp_bias": True} if model == "llama" else config
    tensors = make()
    for name in tensors:
        if START in name:
            write(tmp_path, {n: t for n, t in tensors.items() if n != name}, config)
            with pytest.raises(ValueError, match=rf"has no tensor {name}; expected one"):
                fc.load(tmp_path, 1)
