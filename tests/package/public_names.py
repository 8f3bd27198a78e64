"""The public names of ffncore and its modules memory, models and reference, with their signatures.

`python tests/package/public_names.py` writes public_names.txt into this folder, one line for each
function, class, method, field and property, with its signature. Tests: test_public_names.py.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import ffncore
from ffncore import memory, models, reference

LIST = Path(__file__).with_suffix(".txt")


def lines() -> list[str]:
    found = [f"module {name}: {' '.join(shown)}" for name, shown in MODULES.items()]
    for prefix, module in (
        *(("", ffncore), ("memory.", memory)),
        *(("models.", models), ("reference.", reference)),
    ):
        names = module.__all__ if module in (ffncore, memory) else _own(module)
        for name in sorted(names):
            found += _described(prefix + name, getattr(module, name))
    return found


# Old module paths that users could import or that pickles have, and the names that each defined.
MODULES = {
    "activations": ["KINDS", "ALIASES", "Activation", "PLAIN_CORE"],
    "checkpoint": ["Checkpoint"],
    "config": ["available_isas", "active_isa", "using_isa", "cpu_features", "show_config"],
    "cost": ["Cost", "cost"],
    "elementwise": ["XieluGrads", "ActivationGrads", "activation", "activation_backward"],
    "families": ["Family", "FAMILIES", "LayerInfo"],
    "family_defaults": ["NESTED", "SYNONYMS", "FIXED"],
    "functional": ["ffn", "ffn_forward", "ffn_backward"],
    "gradcheck": ["STEP", "GradientError", "GradientReport", "check_gradients"],
    "layers": ["FFN"],
    "losses": [
        "CONVENTIONS",
        "load_balancing_loss",
        "load_balancing_loss_backward",
        "router_z_loss",
        "router_z_loss_backward",
    ],
    "models": ["load", "layers", "ranges"],
    "models_moe": ["MOE_FAMILIES"],
    "moe": ["MoEGrads", "moe", "moe_forward", "moe_backward"],
    "moe_layer": ["MoE"],
    "packed": ["PackedWeights", "pack"],
    "reference": ["ffn"],
    "router_layer": ["RouterGrads", "Router"],
    "routers": ["sparsemixer", "switch_capacity"],
    "routing": ["Routing", "route", "route_backward"],
    "threads": ["set_num_threads", "get_num_threads", "num_threads", "register_threadpoolctl"],
    "weights": ["NAMES", "FFNWeights"],
}


# Names that modules import from other packages.
BORROWED = {
    *("Activation", "Checkpoint", "Config", "FFN", "FFNWeights", "LayerTensors", "MoE"),
    *("as_activation", "as_dtype", "brief", "packing"),
    *("ALIASES", "FIXED", "NAMES", "SUPPORTED"),
}


def _own(module: types.ModuleType) -> list[str]:
    """The public functions, classes and constants that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in BORROWED
        and getattr(value, "__module__", "ffncore" * name.isupper()).startswith("ffncore")
    ]


def _described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"class {name}{_signature(value)}"
        for own, member in sorted(_members(value).items()):
            if isinstance(member, (classmethod, staticmethod)):
                kind = type(member).__name__
                yield f"{kind} {name}.{own}{_signature(member.__func__)}"
            elif inspect.isfunction(member):
                yield f"method {name}.{own}{_signature(member)}"
            else:
                yield f"attribute {name}.{own}"
    elif callable(value):
        yield f"function {name}{_signature(value)}"
    else:
        yield f"value {name}"


def _members(kind: type) -> dict[str, object]:
    """The public methods and fields of a class and its bases in this package, and __call__."""
    found: dict[str, object] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("ffncore"):
            found |= dict.fromkeys(getattr(base, "__annotations__", {}))
            found |= vars(base)
    return {n: m for n, m in found.items() if not n.startswith("_") or n == "__call__"}


def _signature(value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    # A type may be written in several ways, such as `fc.Routing` and `Routing`.
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])|\bnp\.", "", text)
    # Quotes and the addresses of objects do not matter.
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace("'", ""))


if __name__ == "__main__":
    LIST.write_text("\n".join(lines()) + "\n")
