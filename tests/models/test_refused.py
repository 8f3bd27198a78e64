"""Models that fc.load does not read: the sentences that say why."""

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc
from ffncore import models
from ffncore.models.files.defaults import DEFAULTS
from ffncore.models.files.towers import TOWERS

TENSORS = {"model.layers.0.mlp.up_proj.weight": np.ones((3, 2), "f4")}


@pytest.mark.parametrize("model_type", sorted(models.REFUSED))
def test_a_refused_model_type_has_a_reason(model_type, tmp_path):
    write(tmp_path, TENSORS, {"model_type": model_type})
    for call in (fc.load, models.layers):
        with pytest.raises(ValueError) as caught:
            call(tmp_path)
        reason = models.REFUSED[TOWERS.get(model_type, {}).get("text", model_type)]
        assert str(caught.value).endswith(f", which is not supported: {reason}")
    assert model_type not in DEFAULTS


def test_a_hash_layer_of_deepseek_v4(tmp_path):
    start = "layers.0.ffn."
    tensors = {start + "gate.weight": np.ones((4, 2)), start + "gate.tid2eid": np.ones((9, 2))}
    tensors |= {
        f"{start}experts.{e}.{n}.weight": np.ones((2, 2))
        for e in range(4)
        for n in ("w1", "w2", "w3")
    }
    write(tmp_path, tensors, {"model_type": "deepseek_v4", "n_shared_experts": 0})
    sentence = r"ffn\.gate\.tid2eid is not supported: it chooses experts by a table of token ids"
    with pytest.raises(ValueError, match=sentence):
        fc.load(tmp_path)
    (info,) = models.layers(tmp_path)
    assert "is not supported: it chooses experts by a table" in info.problem


def test_the_nearest_family_is_named(tmp_path):
    router = {"model.layers.0.mlp.gate.weight": np.ones((2, 2))}
    experts = {
        f"model.layers.0.mlp.experts.{e}.{n}_proj.weight": np.ones((2, 2))
        for e in range(2)
        for n in ("gate", "up", "down")
    }
    cases = [
        (router | experts, "qwen2_moe"),
        ({f"h.0.mlp.{n}.weight": np.ones((2, 2)) for n in ("fc_in", "fc_out")}, "gptj"),
        ({f"layers.0.mlp.{n}.weight": np.ones((2, 2)) for n in ("Wi", "Wo")}, "modernbert"),
    ]
    for tensors, name in cases:
        write(tmp_path, tensors, {"model_type": "mine"})
        with pytest.raises(ValueError, match=rf"named as in {name}; expected family='{name}' if"):
            fc.load(tmp_path)
    write(tmp_path, {"head.weight": np.ones((2, 2))}, {"model_type": "mine"})
    with pytest.raises(ValueError, match=r"does not know; expected family= with a name of ffncore"):
        fc.load(tmp_path)
