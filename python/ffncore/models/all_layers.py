"""fc.load_all: the layers of a checkpoint one after the other, from files that are mapped.

The files are opened once for all layers. A tensor is a view of its mapped file, so that it takes no
memory beyond the system's cache of files; only a conversion (dtype=), and experts that are stored
one by one and have to be stacked, make new arrays. Tests: tests/models/test_all_layers.py.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

from ..arrays.dtypes import as_dtype
from ..layers.ffn import FFN
from ..layers.moe import MoE
from ..runtime.progress import bar
from ..values.activation import Activation, as_activation
from .families import LayerInfo
from .files.checkpoint import Checkpoint
from .finding import stack_of, why_none
from .loading import layers, load


class AllLayers(Iterator[FFN | MoE]):
    """The iterator that fc.load_all returns: layers in the order of their numbers.

    infos  the LayerInfo of each layer, in the same order

    A layer is read when it is asked for. len(...) is the number of all layers.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        infos: list[LayerInfo],
        options: dict[str, Any],
        progress: bool | None,
    ) -> None:
        self.infos = infos
        self._checkpoint, self._options = checkpoint, options
        self._rest = bar(infos, "layers", "layer", progress)
        # Also closes the files if the iterator is dropped before its end.
        self._close = weakref.finalize(self, checkpoint.close)

    def __len__(self) -> int:
        return len(self.infos)

    def __next__(self) -> FFN | MoE:
        try:
            info = next(self._rest)
        except StopIteration:
            self._close()
            raise
        return load(self._checkpoint, info.layer, prefix=info.prefix, **self._options)


def load_all(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    activation: str | Activation | None = None,
    family: str | None = None,
    prefix: str | None = None,
    progress: bool | None = None,
) -> AllLayers:
    """Read all feed-forward layers of a checkpoint, one after the other.

    path        a folder with config.json and .safetensors files, or one .safetensors or .gguf file
    dtype       as for fc.load
    activation  as for fc.load
    family      as for fc.load
    prefix      as for fc.load; None: the layers of the language model
    progress    True: draw a progress bar on stderr, which needs tqdm; False: draw none; None: draw
                it if stderr is a terminal, tqdm is installed, and two seconds have passed

    Returns an iterator over the layers, each an fc.FFN or fc.MoE as fc.load returns it, in the
    order of their numbers. Its attribute infos has the LayerInfo of each, and len() their number.

    The files are opened once and mapped into memory. Weights are views of them that cannot be
    written to, and are read from disk as they are used. Experts that are stored one by one, and
    weights that dtype= converts, are new arrays; `del layer` at the end of a loop frees them
    before the next layer is read. The files must not be changed in place while layers are used.

    Raises the errors of fc.load: here for faults of the whole checkpoint, and for those of a layer
    when the iterator comes to it. It can then be asked for the next layer.

    See also: ffncore.load, ffncore.models.layers.

    >>> for layer in fc.load_all("path/to/model"):
    ...     y = layer(np.zeros((1, layer.d_model), layer.dtype))
    """
    if dtype is not None:
        as_dtype("dtype", dtype)
    if activation is not None:
        activation = as_activation(activation)
    checkpoint = Checkpoint(path, mapped=True)
    try:
        infos = _of_one_stack(checkpoint, family, prefix)
        options = {"dtype": dtype, "activation": activation, "family": family}
        return AllLayers(checkpoint, infos, options, progress)
    except BaseException:
        checkpoint.close()
        raise


def _of_one_stack(
    checkpoint: Checkpoint, family: str | None, prefix: str | None
) -> list[LayerInfo]:
    """The layers of the stack that fc.load would read one of."""
    stack = stack_of(checkpoint, family, prefix)
    if stack is None:
        raise ValueError(why_none(checkpoint, family))
    return [info for info in layers(checkpoint, family) if info.prefix == stack]
