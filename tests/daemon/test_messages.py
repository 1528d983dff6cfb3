import fcntl
import gc
import os
import select
import socket
import typing
from collections.abc import Iterator

import msgspec
import pytest

from tensord.daemon import messages as m
from tensord.daemon.messages import Link, LinkClosed
from tensord.daemon.models.shapes import BUCKETS_MAX
from tensord.ipc.limits import (
    DATA_DIMENSIONS_MAX,
    LABELS_MAX,
    META_BYTES_MAX,
    NAME_BYTES_MAX,
    TENSOR_DIMENSIONS_MAX,
    TENSORS_MAX,
)
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec, free_dimensions
from tensord.ipc.wire import HEADER, encode_opened

X = m.TensorInfo("x", DType.FLOAT32, (3, 4), ())
Y = m.TensorInfo("y", DType.UINT8, (2,), ("no", "größer"))
TOKENS, FOUND = Dimension("tokens", 256), Dimension("found", 100, from_data=True)

EXAMPLES: list[m.AnyMessage] = [
    m.ModelServed(
        1,
        "digits",
        3,
        ("stable",),
        (X, m.TensorInfo("mask", DType.INT64, (("tokens", 256, False),), optional=True)),
        (Y, m.TensorInfo("boxes", DType.FLOAT32, (("found", 100, True), 4))),
        idempotent=False,
        buckets={"tokens": (16, 256)},
        counts={"found": 0},
    ),
    m.KnobValues(4, {"a": 1, "b": 0.5, "c": True, "d": "on"}, {"digits": {"a": 2}}, {"cpu:0": {}}, {"batch": {"a": 3}}),
    m.KnobsApplied(4),
    m.FrontendSetup(2, 2**63 - 1, 2**28, 65_536),
    m.Listen(),
    m.WorkerJoined(0, "cuda:0", 7),
    m.WorkerGone(0),
    m.ReplicaReady(0, 1),
    m.ReplicaExpected(1, False, "it failed to load"),
    m.ArenaMade(5, 6, 2**30),
    m.StartRecording(2.5, 1 << 20),
    m.RecordingEnded(7, "the disk is full"),
    m.CostsKnown(3, [{"bucket": [1, "x"], "fixed_ns": 0.5}]),
    m.CostsLearned(3, [{"bucket": None, "row_ns": 7}]),
    m.ArenaRefused(5, 204, {"asked_bytes": 1, "limit_bytes": 2, "knob": "arenas_bytes_max"}),
    m.Drain(),
    m.FrontendReady(),
    m.ArenaWanted(5, 2**30),
    m.ArenaReturned(6),
    m.WorkerAccused(0, 7, "kind 9 in a ring"),
    m.Drained(),
    m.WorkerSetup(0, "cpu:0", 4, True, 65_536),
    m.LoadModel(1, "/srv/models", "digits", 3),
    m.OpenChannel(7, 2**28),
    m.MapArena(6, 2**30),
    m.UnmapArena(6),
    m.Stop(),
    m.WorkerStarted(2**30),
    m.ModelLoaded(1, 12.5),
    m.ModelBroken(1, "a reason"),
    m.WorkerNoted("pinned memory", "a sentence"),
    m.ChannelOpened(7),
    m.DeviceBroken("no such device"),
]

Links = tuple[Link, Link]


@pytest.fixture
def links() -> Iterator[Links]:
    gc.collect()  # what other tests left behind must not be closed in between
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = Link.pair()
    yield ours, theirs
    ours.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def received(link: Link) -> m.AnyMessage:
    got = link.receive()
    assert got is not None
    message, fds = got
    assert fds == []
    return message


def fill(link: Link) -> int:
    """Send until some wait; returns how many were sent."""
    count = 0
    while not link.backlog:
        link.send(m.KnobsApplied(count))
        count += 1
    return count


# ── messages ────────────────────────────────────────────────────────────────────────────────────


def test_every_message_can_be_received() -> None:
    assert set(typing.get_args(m.AnyMessage)) == set(m.Message.__subclasses__())


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example) for example in EXAMPLES} == set(m.Message.__subclasses__())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_through_as_it_was(links: Links, message: m.AnyMessage) -> None:
    links[0].send(message)
    assert received(links[1]) == message


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", DType.BFLOAT16, (3, 4), ("a", "b")),
        TensorSpec("mask", DType.BOOL, (TOKENS,), optional=True),
        TensorSpec("y", DType.INT8, (FOUND, 2, TOKENS)),
        TensorSpec("z", DType.FLOAT64, ()),
    ],
)
def test_a_specification_comes_through_as_it_was(links: Links, spec: TensorSpec) -> None:
    links[0].send(m.ModelServed(1, "m", 1, (), (m.TensorInfo.of(spec),), (), idempotent=True))
    served = received(links[1])
    assert isinstance(served, m.ModelServed)
    assert [info.spec for info in served.inputs] == [spec]


def test_both_directions_are_independent(links: Links) -> None:
    links[0].send(m.Drain())
    links[1].send(m.Drained())
    assert (received(links[0]), received(links[1])) == (m.Drained(), m.Drain())


def test_what_is_no_message_is_an_error_and_not_a_guess(links: Links) -> None:
    links[0].sock.send(b"\x91\xa7Unknown")
    with pytest.raises(msgspec.ValidationError):
        links[1].receive()


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────


def largest_served() -> m.ModelServed:
    """What a manifest may ask for at most: a specification that fills one frame, and the most buckets and counts."""
    name = "n" * NAME_BYTES_MAX
    labels = tuple(f"{index:053}" for index in range(LABELS_MAX))
    names = iter(f"{index:0{NAME_BYTES_MAX}}" for index in range(TENSORS_MAX * (TENSOR_DIMENSIONS_MAX - 1)))
    shapes = [
        tuple((next(names), 2**31 - 1, False) for _ in range(TENSOR_DIMENSIONS_MAX - 1)) for _ in range(TENSORS_MAX)
    ]
    tensors = tuple(m.TensorInfo(f"{index:0100}", DType.INT8, shape, ()) for index, shape in enumerate(shapes))
    outputs = (m.TensorInfo("y", DType.FLOAT32, (LABELS_MAX,), labels), *tensors[1:])
    dimensions = [each.name for each in free_dimensions([tensor.spec for tensor in tensors])]
    share = BUCKETS_MAX // len(dimensions)
    buckets = {each: tuple(range(2**31 - share, 2**31)) for each in dimensions}
    counts = {f"{index:0{NAME_BYTES_MAX}}": 15 for index in range(DATA_DIMENSIONS_MAX)}
    return m.ModelServed(0, name, 1, ("stable",), tensors, outputs, True, buckets, counts)


def test_the_largest_specification_that_a_client_can_be_sent_is_a_message(links: Links) -> None:
    served = largest_served()
    specs = [tensor.spec for tensor in (*served.inputs, *served.outputs)]
    spec = ModelSpec(served.name, 1, tuple(specs[:TENSORS_MAX]), tuple(specs[TENSORS_MAX:]), 1, True)
    meta_bytes = len(encode_opened(1, 1, spec)) - HEADER.size
    assert 0.9 * META_BYTES_MAX < meta_bytes <= META_BYTES_MAX
    links[0].send(served)
    assert links[0].backlog == 0
    assert received(links[1]) == served


def test_a_message_that_cannot_be_received_is_not_sent(links: Links) -> None:
    with pytest.raises(AssertionError, match="a message of"):
        links[0].send(m.DeviceBroken("x" * m.PACKET_BYTES_MAX))


# ── descriptors ─────────────────────────────────────────────────────────────────────────────────


def test_descriptors_travel_with_their_message(links: Links) -> None:
    pipes = [os.pipe() for _ in range(2)]
    links[0].send(m.Listen())
    links[0].send(m.MapArena(1, 5), [writing for _, writing in pipes])
    for _, writing in pipes:
        os.close(writing)
    assert received(links[1]) == m.Listen()
    got = links[1].receive()
    assert got is not None
    message, fds = got
    assert message == m.MapArena(1, 5)
    for index, (fd, (reading, _)) in enumerate(zip(fds, pipes, strict=True)):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
        os.write(fd, bytes([index]))
        assert os.read(reading, 9) == bytes([index])
        os.close(fd)
        os.close(reading)


def test_as_many_descriptors_as_allowed_arrive(links: Links) -> None:
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(m.FDS_MAX)]
    links[0].send(m.Stop(), opened)
    got = links[1].receive()
    assert got is not None
    assert len(got[1]) == m.FDS_MAX
    for fd in (*opened, *got[1]):
        os.close(fd)


# ── a full socket ───────────────────────────────────────────────────────────────────────────────


def test_sending_never_waits_and_nothing_is_lost_or_reordered(links: Links) -> None:
    sent = fill(links[0])
    for count in range(sent, sent + 100):
        links[0].send(m.KnobsApplied(count))
    assert links[0].backlog == 101
    got = 0
    while got < sent + 100:
        links[0].flush()
        while (message := links[1].receive()) is not None:
            assert message[0] == m.KnobsApplied(got)
            got += 1
    assert links[0].backlog == 0


def test_descriptors_that_wait_may_be_closed_by_their_sender(links: Links) -> None:
    sent = fill(links[0])
    reading, writing = os.pipe()
    links[0].send(m.MapArena(1, 5), [writing])
    os.close(writing)
    for _ in range(sent - 1):
        assert links[1].receive() is not None
    links[0].flush()
    assert links[1].receive() is not None
    got = links[1].receive()
    assert got is not None
    assert got[0] == m.MapArena(1, 5)
    os.write(got[1][0], b"x")
    assert os.read(reading, 1) == b"x"
    os.close(got[1][0])
    os.close(reading)


def test_what_waits_is_closed_with_the_link() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = Link.pair()
    fill(ours)
    with open("/dev/null") as null:
        ours.send(m.Stop(), [null.fileno()])
    ours.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ── the other end ───────────────────────────────────────────────────────────────────────────────


def test_receiving_never_waits(links: Links) -> None:
    assert links[0].receive() is None


def test_what_was_sent_before_the_end_is_received_before_it(links: Links) -> None:
    links[0].send(m.Drained())
    links[0].sock.shutdown(socket.SHUT_RDWR)
    assert received(links[1]) == m.Drained()
    with pytest.raises(LinkClosed):
        links[1].receive()


def test_sending_to_a_closed_end_says_so() -> None:
    ours, theirs = Link.pair()
    theirs.close()
    with pytest.raises(LinkClosed):
        ours.send(m.Stop())
    with pytest.raises(LinkClosed):
        ours.receive()
    ours.close()


def test_flushing_to_a_closed_end_says_so() -> None:
    ours, theirs = Link.pair()
    fill(ours)
    theirs.close()
    with pytest.raises(LinkClosed):
        ours.flush()
    ours.close()


def test_a_link_can_be_polled(links: Links) -> None:
    poller = select.poll()
    poller.register(links[1], select.POLLIN)
    assert poller.poll(0) == []
    links[0].send(m.Stop())
    assert poller.poll(0) == [(links[1].fileno(), select.POLLIN)]
