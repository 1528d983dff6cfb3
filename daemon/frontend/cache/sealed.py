"""Answers as values of the second tier: sealed, so that who can write there cannot forge one. Pure.

    value = version 1 (u8) │ MAC (32) │ computed (u64, wall clock, ns) │ device time (u64, ns) │ bytes of headers (u32)
            │ tensor headers of the RESULT │ payload

The MAC is a keyed BLAKE2b of the request's key and of all that follows it: an answer is no answer to another request.
"""

import hmac
import struct
from hashlib import blake2b
from typing import Final

from tensord.ipc.errors import BadRequest
from tensord.ipc.wire import Lane, decode_tensors

from .answers import Answer

VERSION: Final = b"\1"
MAC_BYTES: Final = 32
HEAD: Final = struct.Struct("<QQI")
SEALED_BYTES: Final = len(VERSION) + MAC_BYTES + HEAD.size
"""What a value has beside headers and payload."""

_PERSON: Final = b"tensord sealed 1"


def seal(secret: bytes, key: bytes, answer: Answer, now_ns: int, wall_ns: int) -> bytes:
    """The answer as a value; both clocks show the same moment."""
    computed_ns = wall_ns - (now_ns - answer.computed_ns)
    body = HEAD.pack(computed_ns, answer.device_ns, len(answer.headers)) + answer.headers + answer.payload
    return VERSION + _mac(secret, key, body) + body


def unseal(secret: bytes, key: bytes, value: bytes, outputs: int, now_ns: int, wall_ns: int) -> Answer | None:
    """The answer with so many outputs; None where the value is not one that `seal` made for this key.

    One of the future was computed by a host whose clock is wrong, and would be kept for too long: None, too.
    """
    body = value[len(VERSION) + MAC_BYTES :]
    mac = value[len(VERSION) : len(VERSION) + MAC_BYTES]
    if value[:1] != VERSION or len(body) < HEAD.size or not hmac.compare_digest(mac, _mac(secret, key, body)):
        return None
    computed_ns, device_ns, headers_bytes = HEAD.unpack_from(body)
    headers, payload = body[HEAD.size : HEAD.size + headers_bytes], body[HEAD.size + headers_bytes :]
    try:
        tensors = decode_tensors(memoryview(headers), outputs)
    except BadRequest:
        return None
    inline_bytes = sum(tensor.nbytes for tensor in tensors if tensor.lane is Lane.INLINE)
    if inline_bytes != len(payload) or computed_ns > wall_ns:
        return None
    return Answer(headers, payload, now_ns - (wall_ns - computed_ns), device_ns)


def _mac(secret: bytes, key: bytes, body: bytes) -> bytes:
    state = blake2b(key, digest_size=MAC_BYTES, key=secret, person=_PERSON)
    state.update(body)
    return state.digest()
