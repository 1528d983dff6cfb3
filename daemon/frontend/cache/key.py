"""Keys of answers: a keyed BLAKE2b digest of all that an answer depends on. Pure.

    digest = BLAKE2b(key = secret, person = "tensord answer 1",  head │ bytes of every input, in the model's order)
    head   = msgpack [model, version, tenant or nil, rows, sizes, inputs that are there, inputs, outputs]

msgpack says where each of its values ends, and the head says how many bytes of which input follow, so two requests
with the same text are the same request. Without the secret nobody can tell the digest of a request, so nobody can
prepare an answer, or one that collides.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from tensord.ipc.tensors import TensorSpec

from ...messages import TensorInfo

SECRET_BYTES: Final = 32
DIGEST_BYTES: Final = 32
HEADS_MAX: Final = 256
"""Hashed heads remembered per model; then the memory starts anew."""

_PERSON: Final = b"tensord answer 1"


class Specified(Protocol):
    """What a key has of a model."""

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Formed(Protocol):
    """What a key has of a request's form, beside the bytes."""

    @property
    def rows(self) -> int: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def inline_inputs(self) -> tuple[int, ...]: ...


class Keys:
    """The keys of the requests for one model version. The secret has SECRET_BYTES."""

    __slots__ = ("_heads", "_model", "_secret")

    def __init__(self, secret: bytes, model: Specified) -> None:
        self._secret = secret
        self._model = model
        self._heads: dict[tuple[object, ...], blake2b] = {}

    def digest(self, form: Formed, tenant: str | None, inputs: Iterable[memoryview]) -> bytes:
        """The key of a request: `inputs` are the bytes of `form.inline_inputs`, and nobody else can write to them.

        `tenant` is None where tenants share answers.
        """
        known = (form.rows, form.sizes, form.inline_inputs, tenant)
        head = self._heads.get(known)
        if head is None:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            head = self._heads[known] = self._head(form, tenant)
        state = head.copy()
        for tensor in inputs:
            state.update(tensor)
        return state.digest()

    def _head(self, form: Formed, tenant: str | None) -> blake2b:
        model = self._model
        head = (
            model.name,
            model.version,
            tenant,
            form.rows,
            form.sizes,
            form.inline_inputs,
            tuple(map(TensorInfo.of, model.inputs)),
            tuple(map(TensorInfo.of, model.outputs)),
        )
        encoded = msgspec.msgpack.encode(head)
        return blake2b(encoded, digest_size=DIGEST_BYTES, key=self._secret, person=_PERSON)
