"""A second opinion on the formats: decoders of one block in plain Python, without numpy.

Each reads a block as its description says, one weight after the other, and gives numbers of double
precision. tests/conformance/test_gguf.py compares with the gguf package.
"""

import math
import struct

import numpy as np

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def half(data):
    return struct.unpack("<e", data)[0]


def nibble(data, j):
    """Code j of 32 in 16 bytes: the low half of byte j, then the high halves."""
    return data[j] & 15 if j < 16 else data[j - 16] >> 4


def q8_0(b):
    return [half(b[:2]) * struct.unpack("b", b[2 + j : 3 + j])[0] for j in range(32)]


def q4_0(b):
    return [half(b[:2]) * (nibble(b[2:], j) - 8) for j in range(32)]


def q4_1(b):
    return [half(b[:2]) * nibble(b[4:], j) + half(b[2:4]) for j in range(32)]


def mxfp4(b):
    found = []
    for j in range(32):
        code = nibble(b[1:], j)
        found.append(math.ldexp(E2M1[code & 7] * (-1 if code & 8 else 1), b[0] - 127))
    return found


def scale_and_minimum(b, j):
    if j < 4:
        return b[j] & 63, b[j + 4] & 63
    return (b[j + 4] & 15) + 16 * (b[j - 4] >> 6), (b[j + 4] >> 4) + 16 * (b[j] >> 6)


def k_block(b, codes):
    d, dmin = half(b[:2]), half(b[2:4])
    found = []
    for i in range(256):
        s, m = scale_and_minimum(b[4:16], i // 32)
        found.append(d * s * codes(i) - dmin * m)
    return found


def q4_k(b):
    def code(i):
        byte = b[16 + i // 64 * 32 + i % 32]
        return byte & 15 if i % 64 < 32 else byte >> 4

    return k_block(b, code)


def q5_k(b):
    def code(i):
        byte = b[48 + i // 64 * 32 + i % 32]
        low = byte & 15 if i % 64 < 32 else byte >> 4
        return low + 16 * (b[16 + i % 32] >> (i // 32) & 1)

    return k_block(b, code)


def q6_k(b):
    d = half(b[208:210])
    found = []
    for i in range(256):
        part, j = divmod(i, 128)
        low = b[64 * part + j % 64] >> (0 if j < 64 else 4) & 15
        high = b[128 + 32 * part + j % 32] >> 2 * (j // 32) & 3
        scale = struct.unpack("b", b[192 + i // 16 : 193 + i // 16])[0]
        found.append(d * scale * (low + 16 * high - 32))
    return found


def q1_0(b):
    return [half(b[:2]) * (1 if b[2 + j // 8] >> j % 8 & 1 else -1) for j in range(128)]


def q2_0(b):
    weights = 4 * (len(b) - 2)
    return [half(b[:2]) * ((b[2 + j // 4] >> 2 * (j % 4) & 3) - 1) for j in range(weights)]


def tq2_0(b):
    found = []
    for i in range(256):
        part, j = divmod(i, 128)
        found.append(half(b[64:]) * ((b[32 * part + j % 32] >> 2 * (j // 32) & 3) - 1))
    return found


def tq1_0(b):
    found = [0.0] * 256
    for start, first, width, digits in ((0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4)):
        for m in range(width):
            for n in range(digits):
                digit = b[start + m] * 3**n % 256 * 3 >> 8
                found[first + m + width * n] = half(b[52:]) * (digit - 1)
    return found


# From names to decoders, the weights of a block, and its bytes.
BLOCKS = {
    "q8_0": (q8_0, 32, 34),
    "q4_0": (q4_0, 32, 18),
    "q4_1": (q4_1, 32, 20),
    "mxfp4": (mxfp4, 32, 17),
    "q4_k": (q4_k, 256, 144),
    "q5_k": (q5_k, 256, 176),
    "q6_k": (q6_k, 256, 210),
    "q1_0": (q1_0, 128, 18),
    "q2_0": (q2_0, 64, 18),
    "q2_0 of 128": (q2_0, 128, 34),
    "tq1_0": (tq1_0, 256, 54),
    "tq2_0": (tq2_0, 256, 66),
}

# Where the float16 numbers of a block are.
HALVES = {
    **dict.fromkeys(("q8_0", "q4_0", "q1_0", "q2_0", "q2_0 of 128"), (0,)),
    **dict.fromkeys(("q4_1", "q4_k", "q5_k"), (0, 2)),
    "q6_k": (208,),
    "tq1_0": (52,),
    "tq2_0": (64,),
    "mxfp4": (),
}


def random_blocks(rng, name, *shape):
    """Bytes [*shape, bytes of a block] with every code and finite scales of either sign."""
    size = BLOCKS[name][2]
    data = rng.integers(0, 256, (*shape, size), dtype=np.uint8)
    for at in HALVES[name]:
        numbers = rng.standard_normal(shape).astype("<f2")
        data[..., at : at + 2] = numbers[..., None].view(np.uint8)
    if name == "mxfp4":
        data[..., 0] = rng.integers(1, 250, shape)
    return data


def decoded(name, data):
    """The weights of blocks [..., bytes of a block], one row after the other."""
    decode = BLOCKS[name][0]
    numbers = [decode(block.tobytes()) for block in data.reshape(-1, data.shape[-1])]
    return np.array(numbers).reshape(*data.shape[:-2], -1)


def relative(error, exact):
    return float(np.linalg.norm(error - exact) / np.linalg.norm(exact))
