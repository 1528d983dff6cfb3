"""Every bound that both ends of a socket or ring must agree on: value, unit, derivation, what happens there.

Bounds that an operator may move are knobs (`daemon/knobs.py`); what stands here is fixed by a format
or is the hard ceiling above a knob.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""The one version of the wire protocol spoken; HELLO with another range gets UnsupportedVersion."""

TENSOR_DIMENSIONS_MAX: Final = 8
"""Dimensions of a tensor on the wire, rows included. More is a BadRequest."""

TENSORS_MAX: Final = 16
"""Inputs, and outputs, of one model. More is refused when the model's manifest is read."""

DATA_DIMENSIONS_MAX: Final = 4
"""Free dimensions of one model whose size comes from the data: each is a word per request in a batch's answer.
More is refused when the manifest is read."""

NAME_BYTES_MAX: Final = 128
"""UTF-8 bytes of a model, tensor, label or tenant name. Longer is a BadRequest, or a ManifestError."""

LABELS_MAX: Final = 4_096
"""Labels of one output. A thousand ImageNet classes fit; all must fit into one frame's meta."""

META_BYTES_MAX: Final = 256 * 1024
"""Bytes of a frame between header and payload. 4,096 labels of 40 bytes fit; more is a BadFrame."""

REQUEST_META_BYTES_MAX: Final = 4 * 1024
"""The same for frames that a client sends: 32 tensor headers of 8 dimensions take 2,864. Bounds what a connection
that stops in the middle of a frame holds in the daemon."""

PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Hard ceiling of an inline payload; the knob `inline_bytes_max` (1 MiB by default) is what clients meet.

A frame that promises more than this is a BadFrame: skipping it would let one client hold its
connection busy for minutes. Between knob and ceiling it is skipped and gets PayloadTooLarge."""

DIMENSION_MAX: Final = 2**40
"""Largest single dimension on the wire: with 8 dimensions a product still ends quickly in Python integers."""

PRIORITY_CLASSES: Final = 3
"""0 high, 1 normal, 2 low. Another value is a BadRequest."""

PRIORITY_NORMAL: Final = 1

ARENA_BYTES_MAX: Final = 64 * 1024**3
"""Hard ceiling of one client arena; the knobs `arena_bytes_max` and `arenas_bytes_max` are what clients meet."""

ARENAS_PER_CONNECTION_MAX: Final = 8
"""Arenas that one connection may hold; the next ATTACH gets TooManyArenas."""

ARENAS_MAX: Final = 16_384
"""Arenas of one instance: each is a mapping in every worker, and vm.max_map_count allows 65,530. The next ATTACH
gets NoMemory."""

ARENA_PAGE_BYTES: Final = 4_096
"""An arena takes whole pages, and is counted so."""

TENSOR_ALIGNMENT_BYTES: Final = 64
"""Offsets of tensors in an arena are multiples of this: one cache line, and wider than any vector load."""

SOCKET_PATH_BYTES_MAX: Final = 107
"""`sun_path` holds 108 bytes with its terminator (unix(7)). A longer path is a configuration error."""

SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""SO_SNDBUF asked for at both ends: 588 KiB there and back took 270 instead of 865 µs."""

CLIENT_TIMEOUT_S: Final = 30.0
"""A client's default deadline: finite, and far beyond any queue an operator would accept."""

HELLO_TIMEOUT_S: Final = 10.0
"""A connection that has not said HELLO by then is closed."""

BATCH_REQUESTS_MAX: Final = 1_024
"""Requests in one batch: bounds a batch's descriptor to 1,024 runs per tensor; a batch closes there as full."""

PARTS_MAX: Final = 256
"""Parts that one request may be cut into: what that takes in the front end, a millisecond, keeps others waiting. A
request of more rows than so many batches gets TooManyRows."""

RING_BYTES: Final = 4 * 1024 * 1024
"""Bytes of a work ring: three descriptors of the largest kind, thousands of the usual kind. A descriptor that
finds no room waits in the front end until the worker has answered."""

DONE_RING_BYTES: Final = 256 * 1024
"""Bytes of a done ring: an answer takes at most 257 cells (a size per request and dimension that comes from the
data), and at most 8 batches are unanswered per worker."""

ERROR_BYTES_MAX: Final = 2_048
"""Bytes of a model's error on its way from the worker; longer reasons are cut."""

PIPELINE_DEPTH_MAX: Final = 8
"""Ceiling of the knob `pipeline_depth`: batches that a worker may have unanswered. The done ring is sized by it."""
