"""Structure of a model update: flattening updates to lists of arrays and putting results back together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.aggregate.errors import DtypeMismatch, ShapeMismatch, StructureMismatch
from edgefast.backends.table import Array

try:
    from edgefast.aggregate._collect import collect_items, collect_values
except ImportError:
    from edgefast.aggregate._collect_py import collect_items, collect_values

__all__ = ["Template"]

DTYPES = tuple(np.dtype(c) for c in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"))
_SHARED_BYTES = 4 << 20
_DTYPE_NAMES = ", ".join(d.name for d in DTYPES)


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, (Mapping, list, tuple))


class Template:
    """What every update has to look like: containers, keys, shapes and dtypes of one example.

    `arrays` are the example's leaves in order, C-contiguous and with numpy's own dtype objects; they are only read.
    """

    __slots__ = ("arrays", "keys", "structure")

    def __init__(self, example: Any, *, client: object = 0) -> None:
        self.keys: list[str] = []
        self.arrays: list[Array] = []
        self.structure = self._describe(example, "", client)

    def _describe(self, node: Any, path: str, client: object) -> Any:
        """Leaf: its index. Container: ("dict", keys, children) or ("list" | "tuple", children)."""
        if isinstance(node, Mapping):
            keys = list(node)
            children = [self._describe(node[k], f"{path}.{k}" if path else str(k), client) for k in keys]
            return ("dict", keys, children)
        if isinstance(node, (list, tuple)):
            children = [self._describe(child, f"{path}[{i}]", client) for i, child in enumerate(node)]
            return ("tuple" if isinstance(node, tuple) else "list", children)
        key = path or None
        array = _as_array(node, client, key)
        if array.dtype not in DTYPES or not array.dtype.isnative:
            raise DtypeMismatch.of(client, key, f"an array of {_DTYPE_NAMES} in native byte order", array.dtype)
        self.keys.append(path)
        self.arrays.append(_canonical(array, DTYPES[DTYPES.index(array.dtype)]))
        return len(self.arrays) - 1

    # ---- updates -> arrays -------------------------------------------------------------------------------------

    def flatten(self, update: Any, client: object) -> list[Array]:
        """Leaves of an update in template order, each C-contiguous and of the template's dtype and shape.

        Arrays that already are pass through uncopied; strided ones are copied one by one.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch
        """
        leaves = self._leaves(update, client)
        mismatch = backends.kernels().first_mismatch
        while (t := mismatch(leaves, self.arrays)) >= 0:
            leaves[t] = self._conform(leaves[t], t, client)
        return leaves

    def _leaves(self, update: Any, client: object) -> list[Any]:
        structure = self.structure
        if not isinstance(structure, int) and all(isinstance(c, int) for c in structure[-1]):
            # The common flat model: no recursion.
            if structure[0] == "dict":
                if type(update) is dict and (found := collect_values(update, structure[1])) is not None:
                    return found
            elif type(update) in (list, tuple) and (found := collect_items(update, len(structure[1]))) is not None:
                return found
        leaves: list[Any] = []
        self._walk(structure, update, "", client, leaves)
        return leaves

    def _walk(self, structure: Any, node: Any, path: str, client: object, leaves: list[Any]) -> None:
        key = path or None
        if isinstance(structure, int):
            if not _is_leaf(node):
                raise StructureMismatch.of(client, key, "an array", f"a {type(node).__name__}")
            leaves.append(node)
        elif structure[0] == "dict":
            keys, children = structure[1], structure[2]
            if not isinstance(node, Mapping):
                raise StructureMismatch.of(client, key, "a dict", f"a {type(node).__name__}")
            if len(node) != len(keys) or any(k not in node for k in keys):
                missing = [k for k in keys if k not in node]
                extra = [k for k in node if k not in keys]
                got = "; ".join(
                    [f"missing {', '.join(map(repr, missing[:5]))}"] * bool(missing)
                    + [f"unexpected {', '.join(map(repr, extra[:5]))}"] * bool(extra)
                )
                raise StructureMismatch.of(client, key, f"the template's {len(keys)} keys", got)
            for k, child in zip(keys, children, strict=True):
                self._walk(child, node[k], f"{path}.{k}" if path else str(k), client, leaves)
        else:
            children = structure[1]
            if not isinstance(node, (list, tuple)):
                raise StructureMismatch.of(
                    client, key, f"a {structure[0]} of {len(children)}", f"a {type(node).__name__}"
                )
            if len(node) != len(children):
                raise StructureMismatch.of(client, key, f"{len(children)} arrays", len(node))
            for i, child in enumerate(children):
                self._walk(child, node[i], f"{path}[{i}]", client, leaves)

    def _conform(self, leaf: Any, t: int, client: object) -> Array:
        key = self.keys[t] or None
        expected = self.arrays[t]
        array = _as_array(leaf, client, key)
        if array.dtype != expected.dtype:
            raise DtypeMismatch.of(client, key, expected.dtype, array.dtype)
        if array.shape != expected.shape:
            raise ShapeMismatch.of(client, key, f"shape {expected.shape}", array.shape)
        return _canonical(array, expected.dtype)

    # ---- arrays -> result --------------------------------------------------------------------------------------

    def build(self, arrays: list[Array]) -> Any:
        """The arrays in the template's containers."""
        return self._build(self.structure, arrays)

    def _build(self, structure: Any, arrays: list[Array]) -> Any:
        if isinstance(structure, int):
            return arrays[structure]
        if structure[0] == "dict":
            return {k: self._build(c, arrays) for k, c in zip(structure[1], structure[2], strict=True)}
        children = [self._build(c, arrays) for c in structure[1]]
        return tuple(children) if structure[0] == "tuple" else children

    def new_arrays(self) -> list[Array]:
        """Uninitialised arrays of the template's shapes and dtypes.

        Models of many middle-sized tensors share one allocation: fresh pages cost more than the arithmetic, and the
        kernel hands them out in larger units for one large block.
        """
        offsets = np.cumsum([0] + [(a.nbytes + 63) // 64 * 64 for a in self.arrays])
        if len(self.arrays) < 2 or offsets[-1] < _SHARED_BYTES:
            return [np.empty(a.shape, a.dtype) for a in self.arrays]
        block = np.empty(int(offsets[-1]), np.uint8)
        return [
            block[o : o + a.nbytes].view(a.dtype).reshape(a.shape)
            for o, a in zip(offsets[:-1].tolist(), self.arrays, strict=True)
        ]

    def outputs(self, out: Any, inputs: list[list[Array]]) -> tuple[list[Array], list[tuple[Array, Array]]]:
        """Arrays for the kernel to write, and (from, to) copies to make afterwards, for the caller's `out`.

        Strided targets and targets that share memory with an input are written by way of a copy.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: as for an update, with client "out".
            ValueError: an array of `out` is read-only.
            TypeError: an entry of `out` is no numpy array.
        """
        if out is None:
            return self.new_arrays(), []
        leaves: list[Any] = []
        self._walk(self.structure, out, "", "out", leaves)
        targets: list[Array] = []
        copies: list[tuple[Array, Array]] = []
        for t, leaf in enumerate(leaves):
            where = f"out, key {self.keys[t]!r}" if self.keys[t] else "out"
            if not isinstance(leaf, np.ndarray):
                raise TypeError(f"{where}: expected a numpy array, got {type(leaf).__name__}")
            self._conform(leaf, t, "out")
            if not leaf.flags.writeable:
                raise ValueError(f"{where}: expected a writeable array, got a read-only one")
            if leaf.flags.c_contiguous:
                targets.append(np.asarray(leaf).view(self.arrays[t].dtype))
            else:
                targets.append(np.empty(leaf.shape, self.arrays[t].dtype))
                copies.append((targets[-1], leaf))
        for t in backends.kernels().overlapping(targets, inputs):
            fresh = np.empty_like(targets[t])
            copies.append((fresh, targets[t]))
            targets[t] = fresh
        return targets, copies


def _as_array(node: Any, client: object, key: str | None) -> Array:
    try:
        return np.asarray(node)
    except Exception as error:
        raise DtypeMismatch.of(client, key, "an array", f"a {type(node).__name__} ({error})") from error


def _canonical(array: Array, dtype: np.dtype[Any]) -> Array:
    """C-contiguous, of ndarray's own class, with exactly this dtype object: what the kernels compare by identity."""
    array = np.asarray(array)
    if not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    return array if array.dtype is dtype else array.view(dtype)
