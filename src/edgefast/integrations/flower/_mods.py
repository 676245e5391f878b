"""Client mods: replies that take fewer bytes, messages that did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from edgefast.aggregate import Encoded, ErrorFeedback, Quantizer, StructureMismatch
from edgefast.integrations.flower import _wire
from edgefast.integrations.flower._flwr import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    app,
)

__all__ = ["Mod", "bfloat16_mod", "compression_mod"]

#: A Flower mod: (message, context, next) -> reply.
Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]

_STATE = "edgefast.error-feedback"
_COUNT = "edgefast.error-feedback.count"


def _readable(message: Message) -> Message:
    """The message with every record of this package's stypes as .npy bytes; the message itself where it has none."""
    if not message.has_content():
        return message
    content = message.content
    own = {k: r for k, r in content.items() if isinstance(r, ArrayRecord) and _wire.is_own(r)}
    if own:
        records = {k: _wire.decoded(own[k], "server") if k in own else r for k, r in content.items()}
        message.content = app.RecordDict(records)
    return message


def _the_arrays(reply: Message) -> tuple[str, ArrayRecord] | None:
    """Key and record of the model a training reply carries; None for other replies."""
    if reply.metadata.message_type.split(".")[0] != MessageType.TRAIN or not reply.has_content():
        return None
    found = [(k, r) for k, r in reply.content.items() if isinstance(r, ArrayRecord)]
    if len(found) != 1:
        raise StructureMismatch.of("this one", None, "one ArrayRecord in the reply", len(found))
    return found[0]


def bfloat16_mod(*, uplink: bool = True) -> Mod:
    """A mod that reads bfloat16 models (downlink="bfloat16" of the strategies) and answers in bfloat16.

    float32 and float64 arrays of the reply are rounded to nearest even, half or a quarter of the bytes, relative error
    at most 2 ** -9; others stay. The server widens each exactly. The app sees float32 and needs no change.

    Args:
        uplink: whether replies are rounded, too.
    """

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        reply = call_next(_readable(message), context)
        found = _the_arrays(reply) if uplink else None
        if found is not None:
            key, record = found
            reply.content[key] = _wire.to_bfloat16(record)
        return reply

    return mod


def compression_mod(quantizer: Quantizer, *, difference: bool = True, error_feedback: bool = True) -> Mod:
    """A mod that compresses the answers to training messages: 1 to 8 bits a parameter, or the largest entries.

    The server's strategies (those of this package, and Flower's under accelerate() with difference=False) add the
    compressed form without expanding it. Flower's own, not accelerated, stop with a TypeError instead of reading it.

    Args:
        quantizer: what to compress with, such as Quantizer("eden", bits=4).
        difference: compress the difference to the model that came, which is small where a model is not; integer
            arrays are sent as they are. Needs a strategy of this package on the server.
        error_feedback: what compression loses is added to the next reply (ErrorFeedback). It is kept in the context's
            state, float32, one model in size, and survives the process as that does.

    The random numbers of rotations and stochastic rounding differ between nodes and replies: their nonce is made from
    the node's id and the number of replies it gave.
    """
    if not isinstance(quantizer, Quantizer):
        raise TypeError(f"quantizer: expected a Quantizer, got {type(quantizer).__name__}")

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        message = _readable(message)
        base = _only_record(message) if difference else None
        reply = call_next(message, context)
        found = _the_arrays(reply)
        if found is None:
            return reply
        key, record = found
        update = _difference(record, base) if difference else _wire.expanded(record, "this one")
        encoded = _encode(quantizer, update, context, error_feedback)
        reply.content[key] = _wire.from_encoded(encoded, difference=difference)
        return reply

    return mod


def _only_record(message: Message) -> dict[str, Any] | None:
    """The model that came. Arrays are immutable bytes: what the app does to its message does not reach them."""
    found = [r for r in message.content.values() if isinstance(r, ArrayRecord)] if message.has_content() else []
    return dict(found[0].items()) if len(found) == 1 else None


def _difference(record: ArrayRecord, base: dict[str, Any] | None) -> dict[str, Any]:
    if base is None or set(base) != set(record):
        expected = "the keys of the model that came (or difference=False)"
        raise StructureMismatch.of("this one", None, expected, sorted(set(record) ^ set(base or ()))[:5])
    found: dict[str, Any] = {}
    for key, array in record.items():
        value, start = _wire.npy.array_in(array.data), _wire.npy.array_in(base[key].data)
        if value.shape != start.shape or value.dtype != start.dtype:
            expected, got = f"{start.dtype} of shape {start.shape}", f"{value.dtype} of {value.shape}"
            raise StructureMismatch.of("this one", key, expected, got)
        found[key] = np.subtract(value, start) if value.dtype.kind == "f" else value
    return found


def _encode(quantizer: Quantizer, update: Any, context: Context, error_feedback: bool) -> Encoded:
    state = context.state
    count = cast(int, cast(ConfigRecord, state[_COUNT])["count"]) if _COUNT in state else 0
    # Node ids are random 64-bit numbers; 2**32 replies a node.
    node = (context.node_id ^ context.node_id >> 32) & 0xFFFFFFFF
    nonce = node << 32 | count & 0xFFFFFFFF
    state[_COUNT] = app.ConfigRecord({"count": count + 1})
    if not error_feedback:
        return quantizer.encode(update, nonce=nonce)
    feedback = ErrorFeedback(quantizer, nonce=nonce)
    if _STATE in state:
        owed = cast(ArrayRecord, state[_STATE])
        feedback.load_residual({k: a.numpy() for k, a in owed.items()}, update)
    encoded = feedback.encode(update)
    state[_STATE] = _wire.to_record(feedback.residual())
    return encoded
