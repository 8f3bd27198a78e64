"""What a user can name: the public names of ffncore, ffncore.models and ffncore.reference.

`python tests/package/public_names.py` writes public_names.txt beside this file, one line for each
function, class, method, field and property, with its signature. Tests: test_public_names.py.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import ffncore
from ffncore import models, reference

LIST = Path(__file__).with_suffix(".txt")


def lines() -> list[str]:
    found = [f"module {name}" for name in MODULES]
    for prefix, module in (("", ffncore), ("models.", models), ("reference.", reference)):
        names = ffncore.__all__ if module is ffncore else _own(module)
        for name in sorted(names):
            found += _described(prefix + name, getattr(module, name))
    return found


# Module paths that a user could import, or that a pickle may name, before folders were made.
MODULES = (
    *("activations", "checkpoint", "config", "cost", "elementwise", "families"),
    *("family_defaults", "functional", "gradcheck", "layers", "losses", "models", "models_moe"),
    *("moe", "moe_layer", "packed", "reference", "router_layer", "routers", "routing", "threads"),
    "weights",
)


def _own(module: types.ModuleType) -> list[str]:
    """Functions and classes of ours that a module shows; not what it borrows from elsewhere."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("ffncore")
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
    """By name, those of the classes of ours that it is made of; __call__ is one, too."""
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
    # How a type is spelled depends on where its name comes from: `fc.Routing`, `Routing`.
    text = re.sub(r"\bfc\.|\bffncore\.(?:\w+\.)*|\bnp\.", "", text)
    # Which quotes and what an object's address is say nothing.
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace("'", ""))


if __name__ == "__main__":
    LIST.write_text("\n".join(lines()) + "\n")
