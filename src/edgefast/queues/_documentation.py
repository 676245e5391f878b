"""What help() says about the native queues: the words, and the signatures, of their pure-Python twins."""

from __future__ import annotations

import inspect
import types

from numpy.lib import add_docstring

__all__ = ["document"]


def document(cls: type, core: type, twin: type) -> None:
    """Give a queue and the methods and attributes of its core the documentation of its twin."""
    cls.__doc__ = twin.__doc__
    for name, attribute in vars(core).items():
        original = getattr(twin, name, None)
        if name.startswith("_") or not original or not original.__doc__ or attribute.__doc__:
            continue
        text = inspect.cleandoc(original.__doc__)
        if isinstance(attribute, types.MethodDescriptorType):  # C keeps the signature in front of the text
            parameters = inspect.signature(original).parameters.values()
            plain = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
            text = f"{name}{plain}\n--\n\n{text}".replace("(self", "($self", 1)
        add_docstring(attribute, text)
