"""Arrays for calls with bad input, and the check of what such a call does."""

import re

import numpy as np
import pytest
from support import make_weights, normal

import ffncore as fc

D, F, T = 5, 7, 3


def f32(*shape):
    return np.ones(shape, np.float32)


class Setting:
    """Arrays for a call; after the error all of them are compared with their old content."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.w = make_weights(rng, D, F, biases=("b_up",), dtype=np.float32)
        self.plain = make_weights(rng, D, F, gated=False, dtype=np.float32)
        self.double = make_weights(rng, D, F)
        self.packed = fc.pack(self.w)
        self.x = normal(rng, T, D, dtype=np.float32)
        self.out = normal(rng, T, D, dtype=np.float32)
        self.base = normal(rng, 4, T, D, dtype=np.float32)
        self.frozen = normal(rng, T, D, dtype=np.float32)
        self.frozen.flags.writeable = False
        self.y, self.saved = fc.ffn_forward(self.x, self.w, activation="silu")
        self.saved_packed = fc.ffn_forward(self.x, self.packed, activation="silu")[1]
        self.saved_plain = fc.ffn_forward(self.x, self.plain, activation="relu")[1]

    def bytes(self):
        arrays = [self.x, self.out, self.base, self.frozen, self.y, self.packed._buffer]
        for w in (self.w, self.plain, self.double):
            arrays += w.arrays().values()
        return [a.tobytes() for a in arrays]


def ffn(s, x=None, w=None, activation="silu", **options):
    return fc.ffn(
        s.x if x is None else x, s.w if w is None else w, activation=activation, **options
    )


def backward(s, grad=None, saved=None, **options):
    return fc.ffn_backward(
        s.x if grad is None else grad, s.saved if saved is None else saved, **options
    )


def huge(*shape):
    """An array of any size in the memory of one number, by zero strides."""
    return np.lib.stride_tricks.as_strided(f32(1), shape, (0,) * len(shape), writeable=False)


def check(call, error, sentence, make=Setting):
    setting = make()
    before = setting.bytes()
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        call(setting)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    assert setting.bytes() == before
