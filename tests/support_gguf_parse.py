"""A reader of GGUF files for tests of the writer, straight from the description of the format."""

import struct

SCALARS = {4: "<I", 6: "<f", 7: "<?"}


def parse(data):
    """The entries, and the tensors: name -> (shape as of an array, number of the type, offset)."""
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return values if len(values) > 1 else values[0]

    def text():
        nonlocal at
        length = take("<Q")
        at += length
        return data[at - length : at].decode()

    assert data[:4] == b"GGUF"
    at = 4
    version, tensors, count = take("<IQQ")
    assert version == 3
    entries = {}
    for _ in range(count):
        key, kind = text(), take("<I")
        assert key not in entries
        entries[key] = text() if kind == 8 else take(SCALARS[kind])
    found = {}
    for _ in range(tensors):
        name = text()
        sizes = [take("<Q") for _ in range(take("<I"))]
        found[name] = (tuple(sizes[::-1]), *take("<IQ"))
    start = at + -at % entries.get("general.alignment", 32)
    assert not any(data[at:start])
    return entries, {n: (shape, kind, start + at) for n, (shape, kind, at) in found.items()}
