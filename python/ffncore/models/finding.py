"""Finds the layers of a checkpoint: which stack, which row of the table, which tensors.

A stack is all layers with one prefix, such as "model.language_model."; its tower is told by the
words of the prefix (files/towers.py). Each tower has its own part of config.json, whose model_type
chooses the row. Without prefix= the language model is meant; if no stack is the main one, an error
lists them. Tests: tests/models/test_towers.py, tests/models/test_models.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import blocks
from .families import FAMILIES, MOE_FAMILIES, REFUSED, Family, MoEFamily
from .families.gguf_names import in_gguf
from .families.row import Names
from .files.checkpoint import Checkpoint
from .files.config import Config
from .files.json_text import brief
from .files.towers import SIDE, WORDS, tower_of
from .layer_tensors import LayerTensors

ROWS: tuple[Family, ...] = (*FAMILIES, *MOE_FAMILIES)


@dataclass(frozen=True)
class Found:
    """A layer of the checkpoint, whose tensors have not been checked."""

    row: Family
    prefix: str
    layer: int
    tensors: LayerTensors
    template: str  # the first part of its names, with {} for the number
    config: Config

    @property
    def tower(self) -> str:
        return tower_of(self.prefix)

    @property
    def mixture(self) -> MoEFamily | None:
        """The row, if the layer has experts."""
        row = self.row
        return row if isinstance(row, MoEFamily) and self.tensors.have(row.starts) else None

    @property
    def forms(self) -> tuple[Names, ...]:
        """The forms that a dense layer with these names may have."""
        return forms_of(self.row, self.template, self.tower)

    @property
    def parts(self) -> dict[str, tuple[Names, ...]]:
        """The other blocks of the layer, by name."""
        parts = {
            name: forms
            for name, forms in self.row.parts.items()
            if blocks.there(self.tensors, forms)
        }
        row = self.mixture
        if row is None:
            return {n: f for n, f in parts.items() if not set(f) & set(self.forms)}
        if blocks.there(self.tensors, row.shared):
            form = blocks.choose(self.tensors, row.shared)
            parts[form.start.rstrip(".")] = (form,)
        return parts


def forms_of(row: Family, template: str, tower: str) -> tuple[Names, ...]:
    return tuple(
        form
        for form in row.forms
        if (form.layer or row.layer) == template and form.tower in (None, tower)
    )


def found_layer(
    checkpoint: Checkpoint, layer: int, family: str | None, prefix: str | None
) -> Found:
    """The layer that the arguments of fc.load mean."""
    stack = stack_of(checkpoint, family, prefix)
    if stack is None:
        raise ValueError(why_none(checkpoint, family))
    found = next(_found(checkpoint, family, stack, layer), None)
    if found is None:
        numbers = sorted(found.layer for found in _found(checkpoint, family, stack))
        of = f" with prefix {stack!r}" if len(_prefixes(checkpoint, family)) > 1 else ""
        raise ValueError(
            f"layer {layer}{of} is not in {checkpoint.names_file}; expected one of "
            f"{ranges(numbers)}"
        )
    return found


def found_layers(checkpoint: Checkpoint, family: str | None) -> list[Found]:
    """All layers of all stacks whose row is known."""
    found = list(_found(checkpoint, family))
    return sorted(found, key=lambda found: (found.prefix, found.layer))


# ---- stacks


def _prefixes(checkpoint: Checkpoint, family: str | None) -> list[str]:
    """The prefixes of stacks that have a layer."""
    prefixes: dict[str, None] = {}
    for row, template, config in _rows(checkpoint, family):
        for before, _ in checkpoint.layers(template):
            if (
                before not in prefixes
                and _mine(before, config)
                and next(_of_row(checkpoint, row, template, config, before), None)
            ):
                prefixes[before] = None
    return sorted(prefixes)


def stack_of(checkpoint: Checkpoint, family: str | None, given: str | None) -> str | None:
    """The prefix of the stack that is meant; None if there is none."""
    prefixes = _prefixes(checkpoint, family)
    if given is not None:
        return _given(checkpoint, prefixes, given)
    if len(prefixes) < 2:
        return prefixes[0] if prefixes else None
    main = [p for p in prefixes if tower_of(p) not in SIDE] or prefixes
    text = [p for p in main if tower_of(p) in ("", "text")]
    equal = any(
        row.equal_towers for row, _, config in _rows(checkpoint, family) if config.tower == "text"
    )
    if text and not equal:
        main = text
    if len(main) > 1:
        raise ValueError(
            f"{checkpoint.names_file} has {len(main)} stacks of layers, and none of them is the "
            f"main one; expected prefix= with one of {_listed(main)}"
        )
    return main[0]


def _given(checkpoint: Checkpoint, prefixes: list[str], given: str) -> str | None:
    """The stack that prefix= names: by the whole prefix, by its tower, or by a part of it."""
    dotted = given if given.endswith(".") or not given else given + "."
    tower = next((tower for tower, words in WORDS.items() if given in words), given)
    for matches in (
        [p for p in prefixes if p in (given, dotted)],
        [p for p in prefixes if given and "." + dotted in "." + p],
        [p for p in prefixes if given and tower_of(p) == tower],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(
                f"prefix is {given!r}, which {len(matches)} stacks of layers have in "
                f"{checkpoint.names_file}; expected one of {_listed(matches)}"
            )
    if not prefixes:
        return None
    unknown = checkpoint.config.part(tower)
    own = unknown.model_type != checkpoint.config.outer
    if tower in WORDS and own and not _candidates(unknown, None):
        raise ValueError(_unknown(checkpoint, unknown))
    raise ValueError(
        f"prefix is {given!r}; expected one of {_listed(prefixes)}, the prefixes in "
        f"{checkpoint.names_file}"
    )


def _listed(prefixes: list[str]) -> str:
    return ", ".join(
        ascii(p) + (f" ({tower_of(p)})" if tower_of(p) else "") for p in sorted(prefixes)
    )


# ---- rows


def _rows(checkpoint: Checkpoint, family: str | None) -> list[tuple[Family, str, Config]]:
    """The rows to try for each tower, with a first part of names and the part of config.json.

    Raises ValueError if nothing is known about the model.
    """
    found: list[tuple[Family, str, Config]] = []
    if family is None and not checkpoint.config.names_model():
        # Without a model_type, nothing says how a mixture routes.
        for row in FAMILIES:
            if row.plain:
                pairs = [(row, template, checkpoint.config) for template in row.layers]
                if any(_of_row(checkpoint, *pair, None) for pair in pairs) and any(
                    next(_of_row(checkpoint, *pair, None), None) for pair in pairs
                ):
                    return pairs
        return []
    for tower in ("", *WORDS):
        config = checkpoint.config.part(tower)
        for row in _rows_of(checkpoint, config, family):
            found += [(row, template, config) for template in row.layers]
    if not found:
        raise ValueError(_unknown(checkpoint, checkpoint.config))
    return found


def _rows_of(checkpoint: Checkpoint, config: Config, family: str | None) -> list[Family]:
    """The candidates, with the names of GGUF in such a file."""
    rows = _candidates(config, family)
    told = checkpoint.architecture
    return rows if told is None else [in_gguf(row, told.fused) for row in rows]


def _candidates(config: Config, family: str | None) -> list[Family]:
    if family is not None:
        chosen = [row for row in ROWS if row.name == family]
        if not chosen:
            names = ", ".join(row.name for row in ROWS)
            raise ValueError(f"family is {family!r}; expected one of {names}")
        return chosen
    return [row for row in ROWS if config.model_type in row.model_types]


def _mine(prefix: str, config: Config) -> bool:
    """Whether the names of a stack tell the tower that this part of config.json is for."""
    return tower_of(prefix) == config.tower or not config.names_model()


def _found(
    checkpoint: Checkpoint, family: str | None, prefix: str | None = None, layer: int | None = None
) -> Iterator[Found]:
    for row, template, config in _rows(checkpoint, family):
        yield from _of_row(checkpoint, row, template, config, prefix, layer)


def _of_row(
    checkpoint: Checkpoint,
    row: Family,
    template: str,
    config: Config,
    prefix: str | None,
    layer: int | None = None,
) -> Iterator[Found]:
    experts = isinstance(row, MoEFamily) and any(
        (form.layer or row.layer) == template for form in row.experts
    )
    for (before, number), names in checkpoint.layers(template).items():
        if (prefix is not None and before != prefix) or not _mine(before, config):
            continue
        dense = forms_of(row, template, tower_of(before))
        for own in _numbers(row, config, number):
            if layer is not None and own != layer:
                continue
            start = before + template.format(number)
            tensors = LayerTensors(checkpoint, start, names)
            if (experts and tensors.have(row.starts)) or blocks.there(tensors, dense):
                yield Found(row, before, own, tensors, template, config)


def _numbers(row: Family, config: Config, number: int) -> range:
    """The layers that have the tensors of this number: several, if layers share them."""
    if not row.shared_layers:
        return range(number, number + 1)
    layers = config.integer("num_hidden_layers", 1)
    groups = config.integer("num_hidden_groups", 1, layers, "num_hidden_layers")
    config.integer("inner_group_num", 1, 1, "because ffncore reads one block of a group")
    # Layer i has group floor(i / (layers / groups)).
    first, last = -(-number * layers // groups), -(-(number + 1) * layers // groups)
    return range(first, min(last, layers))


# ---- sentences


def why_none(checkpoint: Checkpoint, family: str | None) -> str:
    """The sentence that says why there is no layer."""
    config, file = checkpoint.config, checkpoint.names_file
    named = family is not None or config.names_model()
    if not named:
        mixtures = [row.name for row in MOE_FAMILIES if _has(checkpoint, row)]
        if mixtures:
            lacks = "has no model_type" if config.there else "does not exist"
            return (
                f"{file} has tensors named as in the mixtures of {', '.join(mixtures)}, but "
                f"{config.path} {lacks}; expected family= with one of these names"
            )
    rows = [row for row, _, _ in _rows(checkpoint, family)] if named else FAMILIES
    tried = ", ".join(dict.fromkeys(row.name for row in rows))
    return (
        f"{file} has no feed-forward layer that ffncore knows; expected tensors named as in {tried}"
    )


def _has(checkpoint: Checkpoint, row: MoEFamily) -> bool:
    """Whether a layer has the router and the experts of the row."""
    for template in row.layers:
        for names in checkpoint.layers(template).values():
            tensors = LayerTensors(checkpoint, "", names)
            if blocks.there(tensors, row.experts) and any(name in tensors for name in row.router):
                return True
    return False


def _unknown(checkpoint: Checkpoint, config: Config) -> str:
    told = f"{config.path} has model_type {brief(config.model_type)}"
    reason = REFUSED.get(config.model_type) if isinstance(config.model_type, str) else None
    if reason is not None:
        return f"{told}, which is not supported: {reason}"
    near = _closest(checkpoint)
    expected = "expected family= with a name of ffncore.models.FAMILIES or MOE_FAMILIES"
    if near is not None:
        expected = f"its tensors are named as in {near}; expected family={near!r}"
    return (
        f"{told}, which ffncore.models does not know; {expected} if its layers are computed that "
        f"way, or your own arrays in fc.FFNWeights (fused ones by FFNWeights.from_gate_up)"
    )


def _closest(checkpoint: Checkpoint) -> str | None:
    """The row whose names most layers have: mixtures first, because they have dense layers, too."""
    best: tuple[int, str | None] = (0, None)
    for row in (*MOE_FAMILIES, *FAMILIES):
        count = 0
        for template in row.layers:
            for names in checkpoint.layers(template).values():
                tensors = LayerTensors(checkpoint, "", names)
                forms = forms_of(row, template, "")
                if isinstance(row, MoEFamily):
                    forms = row.experts if tensors.have(row.router) else ()
                count += any(blocks.share(tensors, form)[0] == 1 for form in forms)
        if count > best[0]:
            best = (count, row.name)
    return best[1]


def ranges(numbers: list[int]) -> str:
    """Return numbers as text: "0-2, 5" for [0, 1, 2, 5]."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
