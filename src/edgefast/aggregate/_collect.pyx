"""Leaves of a flat model update, once per array: 100 clients of 400 tensors are 40 000 of them.

Compiled twin of _collect_py.py. None means "look closer": the caller then walks the update and names what is wrong.
"""

from cpython.dict cimport PyDict_GetItemWithError, PyDict_Size
from cpython.object cimport PyObject

import numpy as np

cdef object ndarray = np.ndarray
cdef object memmap = np.memmap


def collect_values(dict update not None, list keys not None):
    """update[k] for k in keys when those are all its keys and every value is a plain ndarray, else None."""
    cdef Py_ssize_t i, n = len(keys)
    cdef PyObject *found
    cdef list values
    cdef object value
    if PyDict_Size(update) != n:
        return None
    values = []
    for i in range(n):
        found = PyDict_GetItemWithError(update, keys[i])
        if found is NULL:
            return None
        value = <object>found
        if type(value) is not ndarray and type(value) is not memmap:
            return None
        values.append(value)
    return values


def collect_items(update not None, Py_ssize_t count):
    """The items as a list when there are `count` of them and every one is a plain ndarray, else None."""
    cdef list values
    cdef object value
    if len(update) != count:
        return None
    values = list(update)
    for value in values:
        if type(value) is not ndarray and type(value) is not memmap:
            return None
    return values
