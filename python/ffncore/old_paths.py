"""Old paths of modules, from versions without folders, for programs and pickles that use them.

`import ffncore.weights` imports ffncore.values.weights: the module itself, not a copy of it. The
package does not use these paths. Tests: tests/package/test_old_pickles.py,
tests/package/test_public_names.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# From old paths to the modules. Paths without an underscore were public, the others are in pickles.
MODULES = {
    "_copying": "values.copied",
    "_grads": "values.gradients",
    "_memory": "arrays.memory",
    "_moe_layer": "layers.moe_gradients",
    "_reference_routing": "reference.routing",
    "_saved": "values.saved",
    "activations": "values.activation",
    "checkpoint": "models.files.checkpoint",
    "config": "runtime.config",
    "cost": "functional.cost",
    "elementwise": "functional.elementwise",
    "families": "models.families",
    "family_defaults": "models.files.defaults",
    "functional": "functional",
    "gradcheck": "functional.gradcheck",
    "layers": "layers",
    "losses": "functional.losses",
    "models": "models",
    "models_moe": "models.families",
    "moe": "functional.mixtures",
    "moe_layer": "layers.moe",
    "packed": "values.packing.pack",
    "reference": "reference",
    "router_layer": "layers.router",
    "routers": "functional.model_routers",
    "routing": "functional.routing",
    "threads": "runtime.threads",
    "weights": "values.weights",
}


class _Finder(MetaPathFinder, Loader):
    """Imports the module that an old path stands for."""

    def __init__(self, package: str) -> None:
        self._start = package + "."
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 (importlib passes it)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        name = fullname.removeprefix(self._start)
        if name == fullname or MODULES.get(name, name) == name:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = spec.name.removeprefix(self._start)
        module = import_module(self._start + MODULES[name])
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec: it has run already, and importlib set that of the path."""
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = self._specs.pop(spec.name)


def install(package: str) -> None:
    # Importing a path sets an attribute of the package, which must not replace the functions
    # fc.cost and fc.moe. So their modules, which are loaded already, are entered here.
    for name in ("cost", "moe"):
        sys.modules[f"{package}.{name}"] = sys.modules[f"{package}.{MODULES[name]}"]
    sys.meta_path.append(_Finder(package))
