"""Damaged checkpoints: a layer is loaded as it was, or refused in a sentence of ours.

What must hold is told by what a damage touches: a layer whose own tensors, and the headers, index
and config.json that describe them, are as they were has to be there with the same bits.
"""

import json
import random
import shutil

import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, file_bytes, llama

import ffncore as fc
from ffncore import models

# Of each checkpoint; 500 reach every kind of damage about fifty times.
DAMAGES = (500, pytest.param(2500, marks=pytest.mark.slow))
INDEX = "model.safetensors.index.json"
JUNK = (None, True, 0, -1, 1, 3, 9, 2**63, 10**40, 1.5, float("nan"), "", "8", "silu", "F16", "x")
JUNK += ("../x", "\ud800", "a\0b", [], [1], [0, 8], ["8"], {}, {"a": 1}, [[[]]])


def in_shards(tensors, config):
    """Layer 0 is in files 0 and 1, layer 1 in files 1 and 2; also returns each tensor's file."""
    where = {}
    for i, name in enumerate(sorted(tensors)):
        where[name] = f"part-{i % 2 + int('.layers.1.' in name)}.safetensors"
    files = {
        file: file_bytes({n: t for n, t in tensors.items() if where[n] == file})
        for file in set(where.values())
    }
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": where}).encode()
    files["config.json"] = json.dumps(config).encode()
    return files


def in_one(tensors, config):
    return {
        "model.safetensors": file_bytes(tensors),
        "config.json": json.dumps(config).encode(),
    }


TINY = deepseek_v3(e=4, d=2, f=1), {**DEEPSEEK_V3, "num_experts_per_tok": 2}
BASES = [make(*model) for model in ((llama(d=2, f=3), LLAMA), TINY) for make in (in_shards, in_one)]


def layer_of(name):
    return int(name.split(".")[2])


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def layers_in(data):
    return {layer_of(name) for name in header_of(data)[0]}


class Damage:
    """The files after the damage (None: missing), and what it touches."""

    def __init__(self, files, pick):
        self.files, self.pick = files, pick
        self.changed = {}
        self.touched = (
            set()
        )  # layers for which something else than the bytes of a tensor is touched
        self.values = False  # whether other numbers are the correct result

    def shard(self):
        name = self.pick.choice(sorted(f for f in self.files if f.endswith(".safetensors")))
        return name, self.files[name]

    def flip(self):
        """Change some bytes of any file, most often one."""
        name = self.pick.choice(sorted(self.files))
        data = bytearray(self.files[name])
        start = header_of(data)[1] if name.endswith(".safetensors") else len(data)
        for _ in range(self.pick.choice((1, 1, 1, 2, 5))):
            place = self.pick.randrange(len(data))
            data[place] ^= 1 << self.pick.randrange(8)
            if place >= start:
                self.values = True
            elif name.endswith(".safetensors"):
                self.touched |= layers_in(self.files[name])
            else:
                self.touched |= {0, 1}
        self.values |= name == "config.json"
        self.changed[name] = bytes(data)

    def cut(self):
        name, data = self.shard()
        header, start = header_of(data)
        length = self.pick.randrange(len(data))
        self.changed[name] = data[:length]
        gone = {n for n, e in header.items() if start + e["data_offsets"][1] > length}
        self.touched |= layers_in(data) if length < start else {layer_of(n) for n in gone}

    def cut_text(self):
        name = self.pick.choice(sorted(f for f in self.files if f.endswith(".json")))
        self.changed[name] = self.files[name][: self.pick.randrange(len(self.files[name]))]
        self.touched |= {0, 1}

    def move_bytes(self):
        """Remove some bytes, or insert others."""
        name, data = self.shard()
        place, count = self.pick.randrange(len(data)), self.pick.randrange(1, 9)
        between = self.pick.randbytes(count) if self.pick.random() < 0.5 else b""
        rest = data[place:] if between else data[place + count :]
        self.changed[name] = data[:place] + between + rest
        self.touched |= layers_in(data)
        self.values = True

    def append(self):
        name, data = self.shard()
        self.changed[name] = data + self.pick.randbytes(self.pick.randrange(1, 99))

    def replace_shard(self):
        name, data = self.shard()
        others = [None, b"", b"{}", bytes(8), self.pick.randbytes(50)]
        others += [self.files[f] for f in self.files if f != name]
        self.changed[name] = self.pick.choice(others)
        self.touched |= layers_in(data)

    def describe(self):
        """Change the description of a tensor in a header."""
        name, data = self.shard()
        header, start = header_of(data)
        tensor = self.pick.choice(sorted(header))
        self.touched.add(layer_of(tensor))
        kind = self.pick.randrange(5)
        if kind == 0:
            header[tensor] = self.pick.choice(JUNK)
        elif kind == 1:
            del header[tensor][self.pick.choice(sorted(header[tensor]))]
        elif kind == 2:
            key = self.pick.choice(("shape", "data_offsets"))
            numbers = header[tensor][key]
            numbers[self.pick.randrange(len(numbers))] = self.pick.choice(JUNK)
        elif kind == 3:  # into the range of other tensors, which are then touched, too
            by = 4 * self.pick.randrange(-4, 5)
            header[tensor]["data_offsets"] = [n + by for n in header[tensor]["data_offsets"]]
            self.touched |= layers_in(data)
        else:
            key = self.pick.choice(sorted(header[tensor]))
            header[tensor][key] = self.pick.choice(JUNK)
            if key == "data_offsets":
                self.touched |= layers_in(data)
        text = json.dumps(header).encode()
        self.changed[name] = len(text).to_bytes(8, "little") + text + data[start:]

    def rename(self):
        """Rename a tensor, describe it twice, or remove it."""
        name, data = self.shard()
        header, start = header_of(data)
        tensor = self.pick.choice(sorted(header))
        self.touched.add(layer_of(tensor))
        text = json.dumps(header)
        if self.pick.random() < 0.3:
            text = text[:-1] + f', "{tensor}": {json.dumps(header[tensor])}}}'
        elif self.pick.random() < 0.5:
            text = text.replace(tensor, tensor.replace("up", "pu").replace("gate", "gates"))
            text = text.replace(tensor, tensor + "s")
        else:
            del header[tensor]
            text = json.dumps(header)
        self.changed[name] = len(text).to_bytes(8, "little") + text.encode() + data[start:]

    def index(self):
        if INDEX not in self.files:
            return self.append()
        whole = json.loads(self.files[INDEX])
        listed = whole["weight_map"]
        tensor = self.pick.choice(sorted(listed))
        kind = self.pick.randrange(4)
        self.touched |= {0, 1} if kind == 3 else {layer_of(tensor)}
        if kind == 0:
            listed[tensor] = self.pick.choice((*JUNK, INDEX, "part-9.safetensors"))
        elif kind == 1:
            others = [f for f in self.files if f.startswith("part-") and f != listed[tensor]]
            listed[tensor] = self.pick.choice(others)
        elif kind == 2:
            del listed[tensor]
        else:
            whole = self.pick.choice((*JUNK, {"weight_map": self.pick.choice(JUNK)}))
        self.changed[INDEX] = json.dumps(whole).encode()
        return None

    def config(self):
        config = json.loads(self.files["config.json"])
        key = self.pick.choice([*config, "text_config", "scoring_func", "quantization_config"])
        if self.pick.random() < 0.2:
            config.pop(key, None)
        else:
            config[key] = self.pick.choice(JUNK)
        if self.pick.random() < 0.1:
            config = self.pick.choice(JUNK)
        self.changed["config.json"] = json.dumps(config).encode()
        self.touched |= {0, 1}
        self.values = True


KINDS = (Damage.flip, Damage.flip, Damage.cut, Damage.cut_text, Damage.move_bytes, Damage.append)
KINDS += (Damage.replace_shard, Damage.describe, Damage.rename, Damage.index, Damage.config)


def bits(layer):
    blocks = [layer] if isinstance(layer, fc.FFN) else [layer.experts, layer.shared, layer.router]
    found = [repr(layer)]
    for block in blocks:
        weights = getattr(block, "weights", block)
        arrays = block.parameters() if isinstance(block, fc.Router) else weights.arrays()
        found += [array.tobytes() for array in arrays.values()]
    if isinstance(layer, fc.MoE):
        found.append(layer.router.options["e_score_correction_bias"].tobytes())
    return found


def put(folder, name, data):
    # A new file: some file systems wait for the disk when an old one is cut to 0 and closed.
    (folder / name).unlink(missing_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)


OURS = (
    ValueError,
    FileNotFoundError,
)  # exactly these classes, because JSONDecodeError, for instance, is derived from ValueError


def tried(call, *args):
    """The result of a call, or its exception."""
    try:
        return call(*args), None
    except OURS as error:
        return None, error


def check_list(folder, damage, about):
    """layers() lists the layers that can be read, and the problems of the others."""
    infos, refused = tried(models.layers, folder)
    if refused is not None:
        assert type(refused) in OURS, about
        assert damage.touched == {0, 1}, (about, str(refused))
        return
    for info in infos:
        assert info.problem is None or info.layer not in (0, 1) or info.layer in damage.touched
        assert bool(info.parameters) == (info.problem is None), about
    sound = {info.layer for info in infos if info.problem is None}
    assert {0, 1} - damage.touched <= sound, about


@pytest.mark.parametrize("damages", DAMAGES)
@pytest.mark.parametrize("base", range(len(BASES)))
def test_damages(base, damages, tmp_path):
    files, pick = BASES[base], random.Random(base)
    for name, data in files.items():
        put(tmp_path, name, data)
    right = [bits(fc.load(tmp_path, layer)) for layer in (0, 1)]
    outcomes = dict.fromkeys(("as it was", "other numbers", "refused"), 0)
    for number in range(damages):
        damage = Damage(files, pick)
        kind = pick.choice(KINDS)
        kind(damage)
        for name, data in damage.changed.items():
            put(tmp_path, name, data)
        layer = pick.randrange(2)
        about = f"{kind.__name__}, number {number}, layer {layer}"
        found, refused = tried(fc.load, tmp_path, layer)
        if refused is not None:
            assert type(refused) in OURS, about
            text = str(refused)
            assert str(tmp_path) in text, about
            assert any(name in text for name in (*files, "model.safetensors")), (about, text)
            assert "\n" not in text, about
            assert layer in damage.touched, (about, text)
            outcomes["refused"] += 1
        else:
            same = bits(found) == right[layer]
            assert same or damage.values, about
            outcomes["as it was" if same else "other numbers"] += 1
        if number % 4 == 0:
            check_list(tmp_path, damage, about)
        for name in damage.changed:
            put(tmp_path, name, files[name])
    assert min(outcomes.values()) > 0, outcomes


def test_folders_and_links_in_the_place_of_files(tmp_path):
    for number, files in enumerate(BASES):
        for gone in files:
            for kind in ("folder", "link", "loop"):
                folder = tmp_path / f"{number}-{gone}-{kind}"
                folder.mkdir()
                for name, data in files.items():
                    put(folder, name, data)
                put(folder, gone, None)
                if kind == "folder":
                    (folder / gone).mkdir()
                else:
                    (folder / gone).symlink_to(gone if kind == "loop" else "nowhere")
                for layer in (0, 1):
                    needed = not gone.startswith("part") or layer in layers_in(files[gone])
                    if needed:
                        with pytest.raises(
                            ValueError, match=rf"{gone} is (a folder|neither a file)"
                        ):
                            fc.load(folder, layer)
                    else:
                        assert fc.load(folder, layer).name.startswith("model.layers")
                shutil.rmtree(folder)
