"""Structure of a model update: flattening updates to lists of arrays and putting results back together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.aggregate import _leaves, _npy
from edgefast.aggregate._leaves import LeafError, Restore
from edgefast.aggregate.errors import DtypeMismatch, ShapeMismatch, StructureMismatch
from edgefast.backends.table import BF16, Array

try:
    from edgefast.aggregate._collect import collect_items, collect_values
except ImportError:
    from edgefast.aggregate._collect_py import collect_items, collect_values

__all__ = ["DTYPES", "Template", "dtype_name", "union"]

DTYPES = (*(np.dtype(c) for c in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")), BF16)
_SHARED_BYTES = 4 << 20


def dtype_name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype == BF16 else str(dtype)


_DTYPE_NAMES = ", ".join(map(dtype_name, DTYPES))


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, (Mapping, list, tuple))


def _opened(update: Any) -> Any:
    """An update that is a file as the dict of its arrays, mapped into memory."""
    if isinstance(update, os.PathLike):
        from edgefast.aggregate.checkpoints import map_checkpoint

        return map_checkpoint(update)
    return update


class Template:
    """What every update has to look like: containers, keys, shapes and dtypes of one example.

    `arrays` are the example's leaves in order, C-contiguous and with numpy's own dtype objects; they are only read.
    With `partial`, dict keys may be missing from an update: flatten then gives None in their place.
    """

    __slots__ = ("_headers", "_nodes", "arrays", "keys", "partial", "restore", "structure")

    def __init__(self, example: Any, *, client: object = 0, partial: bool = False) -> None:
        self.keys: list[str] = []
        self.arrays: list[Array] = []
        self.restore: list[Restore] = []
        self.partial: bool = partial
        self._nodes: list[Any] = []
        self._headers: list[bytes] | None = None
        self.structure: Any = self._describe(_opened(example), "", client)
        # Only leaves that need an allocation of their own kind are kept.
        self._nodes = [n if r is not None else None for n, r in zip(self._nodes, self.restore, strict=True)]

    def _describe(self, node: Any, path: str, client: object) -> Any:
        """Leaf: its index. Container: ("dict", keys, children) or ("list" | "tuple", children)."""
        if isinstance(node, Mapping):
            items = list(node.items())
            children = [self._describe(v, f"{path}.{k}" if path else str(k), client) for k, v in items]
            return ("dict", [k for k, _ in items], children)
        if isinstance(node, (list, tuple)):
            children = [self._describe(child, f"{path}[{i}]", client) for i, child in enumerate(node)]
            return ("tuple" if isinstance(node, tuple) else "list", children)
        key = path or None
        array = _as_array(node, client, key)
        if array.dtype not in DTYPES or not array.dtype.isnative:
            expected = f"an array of {_DTYPE_NAMES} in native byte order"
            raise DtypeMismatch.of(client, key, expected, dtype_name(array.dtype))
        self.keys.append(path)
        self.arrays.append(_canonical(array, DTYPES[DTYPES.index(array.dtype)]))
        self.restore.append(_leaves.restorer(node))
        self._nodes.append(node)
        return len(self.arrays) - 1

    # ---- updates -> arrays -------------------------------------------------------------------------------------

    def flatten(self, update: Any, client: object) -> list[Any]:
        """Leaves of an update in template order, each C-contiguous and of the template's dtype and shape.

        Arrays that already are pass through uncopied; strided ones are copied one by one. With `partial`, None stands
        for what the update does not have.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch
        """
        leaves = self._leaves(_opened(update), client)
        if self.partial:
            return [None if leaf is None else self._conform(leaf, t, client) for t, leaf in enumerate(leaves)]
        if (first := backends.kernels().first_mismatch(leaves, self.arrays)) >= 0:
            for t in range(first, len(leaves)):
                leaves[t] = self._conform(leaves[t], t, client)
        return leaves

    def _leaves(self, update: Any, client: object) -> list[Any]:
        structure = self.structure
        if not self.partial and not isinstance(structure, int) and all(isinstance(c, int) for c in structure[-1]):
            # The common flat model: no recursion.
            if structure[0] == "dict":
                if type(update) is dict and (found := collect_values(update, structure[1])) is not None:
                    return found
                if (found := self._messages(update)) is not None:
                    return found
            elif type(update) in (list, tuple) and (found := collect_items(update, len(structure[1]))) is not None:
                return found
        leaves: list[Any] = [None] * len(self.arrays)
        self._walk(structure, update, "", client, leaves)
        return leaves

    def _messages(self, update: Any) -> list[Any] | None:
        """The arrays of a dict of Flower's Arrays that have the template's .npy headers, keys in the same order."""
        if not isinstance(update, Mapping) or list(update) != self.structure[1]:
            return None
        values = list(update.values())
        if not values or not _leaves.is_message(values[0]):
            return None
        if self._headers is None:
            self._headers = [_npy.header(a.dtype, a.shape) for a in self.arrays]
        return _npy.views(values, self._headers, self.arrays)

    def _walk(self, structure: Any, node: Any, path: str, client: object, leaves: list[Any]) -> None:
        if isinstance(structure, int):
            if not _is_leaf(node):
                raise StructureMismatch.of(client, path or None, "an array", f"a {type(node).__name__}")
            odd = isinstance(node, np.ndarray) and type(node) not in _leaves.PLAIN
            leaves[structure] = _as_array(node, client, path or None) if odd else node
        elif structure[0] == "dict":
            keys, children = structure[1], structure[2]
            if not isinstance(node, Mapping):
                raise StructureMismatch.of(client, path or None, "a dict", f"a {type(node).__name__}")
            found = node if type(node) is dict else dict(node.items())
            extra = [k for k in found if k not in keys] if len(found) != len(keys) or self.partial else []
            missing = [k for k in keys if k not in found]
            if extra or (missing and not self.partial):
                # With an equal number of keys, something missing means something extra.
                extra = extra or [k for k in found if k not in keys]
                got = "; ".join(
                    [f"missing {', '.join(map(repr, missing[:5]))}"] * (bool(missing) and not self.partial)
                    + [f"unexpected {', '.join(map(repr, extra[:5]))}"] * bool(extra)
                )
                raise StructureMismatch.of(client, path or None, f"the template's {len(keys)} keys", got)
            for k, child in zip(keys, children, strict=True):
                if k in found:
                    self._walk(child, found[k], f"{path}.{k}" if path else str(k), client, leaves)
        else:
            children = structure[1]
            if not isinstance(node, (list, tuple)):
                raise StructureMismatch.of(
                    client, path or None, f"a {structure[0]} of {len(children)}", f"a {type(node).__name__}"
                )
            if len(node) != len(children):
                raise StructureMismatch.of(client, path or None, f"{len(children)} arrays", len(node))
            for i, child in enumerate(children):
                self._walk(child, node[i], f"{path}[{i}]", client, leaves)

    def _conform(self, leaf: Any, t: int, client: object) -> Array:
        key = self.keys[t] or None
        expected = self.arrays[t]
        array = _as_array(leaf, client, key)
        if array.dtype != expected.dtype:
            raise DtypeMismatch.of(client, key, dtype_name(expected.dtype), dtype_name(array.dtype))
        if array.shape != expected.shape:
            raise ShapeMismatch.of(client, key, f"shape {expected.shape}", array.shape)
        return _canonical(array, expected.dtype)

    # ---- arrays -> result --------------------------------------------------------------------------------------

    def build(self, arrays: list[Array]) -> Any:
        """The arrays in the template's containers, each of the kind of the template's leaf."""
        return self._build(self.structure, arrays)

    def _build(self, structure: Any, arrays: list[Array]) -> Any:
        if isinstance(structure, int):
            restore = self.restore[structure]
            return arrays[structure] if restore is None else restore(arrays[structure])
        if structure[0] == "dict":
            return {k: self._build(c, arrays) for k, c in zip(structure[1], structure[2], strict=True)}
        children = [self._build(c, arrays) for c in structure[1]]
        return tuple(children) if structure[0] == "tuple" else children

    def new_arrays(self) -> list[Array]:
        """Uninitialised arrays of the template's shapes and dtypes.

        Models of many middle-sized tensors share one allocation: fresh pages cost more than the arithmetic, and the
        kernel hands them out in larger units for one large block.
        """
        if any(node is not None for node in self._nodes):
            return [
                _leaves.new_array(node, a) if node is not None else np.empty(a.shape, a.dtype)
                for node, a in zip(self._nodes, self.arrays, strict=True)
            ]
        offsets = np.cumsum([0] + [(a.nbytes + 63) // 64 * 64 for a in self.arrays])
        if len(self.arrays) < 2 or offsets[-1] < _SHARED_BYTES:
            return [np.empty(a.shape, a.dtype) for a in self.arrays]
        block = np.empty(int(offsets[-1]), np.uint8)
        return [
            block[o : o + a.nbytes].view(a.dtype).reshape(a.shape)
            for o, a in zip(offsets[:-1].tolist(), self.arrays, strict=True)
        ]

    def outputs(self, out: Any, inputs: Sequence[list[Any]]) -> tuple[list[Array], list[tuple[Array, Array]]]:
        """Arrays for the kernel to write, and (from, to) copies to make afterwards, for the caller's `out`.

        Strided targets and targets that share memory with an input are written by way of a copy.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: as for an update, with client "out".
            ValueError: an array of `out` is read-only.
            TypeError: an entry of `out` is neither a numpy array nor a torch tensor.
        """
        if out is None:
            return self.new_arrays(), []
        leaves: list[Any] = [None] * len(self.arrays)
        partial, self.partial = self.partial, False
        try:
            self._walk(self.structure, out, "", "out", leaves)
        finally:
            self.partial = partial
        targets: list[Array] = []
        copies: list[tuple[Array, Array]] = []
        for t, leaf in enumerate(leaves):
            where = f"out, key {self.keys[t]!r}" if self.keys[t] else "out"
            array = _leaves.writable(leaf)
            if array is None:
                raise TypeError(f"{where}: expected a numpy array or a torch tensor, got {type(leaf).__name__}")
            self._conform(array, t, "out")
            if not array.flags.writeable:
                raise ValueError(f"{where}: expected a writeable array, got a read-only one")
            if array.flags.c_contiguous:
                targets.append(np.asarray(array).view(self.arrays[t].dtype))
            else:
                targets.append(np.empty(array.shape, self.arrays[t].dtype))
                copies.append((targets[-1], array))
        rows = [[a for a in row if a is not None] for row in inputs] if self.partial else list(inputs)
        for t in backends.kernels().overlapping(targets, rows):
            fresh = np.empty_like(targets[t])
            copies.append((fresh, targets[t]))
            targets[t] = fresh
        return targets, copies


def union(updates: Any) -> Any:
    """An example with every dict key of any update, in the order of first appearance."""
    nodes = [_opened(u) for u in updates]
    first = nodes[0]
    if isinstance(first, Mapping):
        found: dict[Any, list[Any]] = {}
        for node in nodes:
            if isinstance(node, Mapping):
                for key, child in node.items():
                    found.setdefault(key, []).append(child)
        return {key: union(children) for key, children in found.items()}
    if isinstance(first, (list, tuple)):
        matching = [n for n in nodes if isinstance(n, (list, tuple)) and len(n) == len(first)]
        return type(first)(union([n[i] for n in matching]) for i in range(len(first)))
    return first


def _as_array(node: Any, client: object, key: str | None) -> Array:
    try:
        return _leaves.as_array(node)
    except LeafError as error:
        raise DtypeMismatch.of(client, key, error.expected, error.got) from error


def _canonical(array: Array, dtype: np.dtype[Any]) -> Array:
    """C-contiguous, of ndarray's own class, with exactly this dtype object: what the kernels compare by identity."""
    array = np.asarray(array)
    if not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    return array if array.dtype is dtype else array.view(dtype)
