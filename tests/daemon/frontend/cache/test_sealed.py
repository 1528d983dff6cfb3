import pytest

from tensord.daemon.frontend.cache.answers import Answer
from tensord.daemon.frontend.cache.sealed import HEAD, SEALED_BYTES, seal, unseal
from tensord.ipc.tensors import DType
from tensord.ipc.wire import Lane, TensorHeader

SECRET, KEY = bytes(range(32)), bytes(32)
NOW_NS, WALL_NS = 1_000, 9_000_000
HEADERS = TensorHeader(0, DType.FLOAT32, (1, 2), 8).encode()
ANSWER = Answer(HEADERS, b"12345678", 400, 77)
VALUE = seal(SECRET, KEY, ANSWER, NOW_NS, WALL_NS)


def opened(value: bytes, key: bytes = KEY, secret: bytes = SECRET, wall_ns: int = WALL_NS) -> Answer | None:
    return unseal(secret, key, value, 1, NOW_NS, wall_ns)


def test_an_answer_comes_back_whole_and_as_old_as_it_is() -> None:
    answer = opened(VALUE, wall_ns=WALL_NS + 50)
    assert answer is not None
    assert (answer.headers, answer.payload, answer.device_ns) == (HEADERS, b"12345678", 77)
    assert NOW_NS - answer.computed_ns == 600 + 50
    assert len(VALUE) == SEALED_BYTES + len(HEADERS) + 8


@pytest.mark.parametrize("position", range(len(VALUE)))
def test_a_changed_byte_makes_it_nothing(position: int) -> None:
    assert opened(VALUE[:position] + bytes([VALUE[position] ^ 1]) + VALUE[position + 1 :]) is None


@pytest.mark.parametrize("length", range(len(VALUE)))
def test_a_part_is_nothing(length: int) -> None:
    assert opened(VALUE[:length]) is None


def test_it_answers_no_other_request_and_no_other_secret() -> None:
    assert opened(VALUE, key=b"\1" * 32) is None
    assert opened(VALUE, secret=bytes(32)) is None
    assert opened(VALUE + b"x") is None


def test_an_answer_of_the_future_is_not_taken() -> None:
    assert opened(VALUE, wall_ns=WALL_NS - 601) is None


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        pytest.param(HEADERS, b"1234567", id="bytes missing"),
        pytest.param(HEADERS + HEADERS, b"12345678", id="another number of outputs"),
        pytest.param(TensorHeader(0, DType.FLOAT32, (1, 2), 8, Lane.ARENA).encode(), b"12345678", id="in an arena"),
        pytest.param(b"", b"12345678", id="no headers"),
    ],
)
def test_what_is_sealed_and_makes_no_sense_is_nothing(headers: bytes, payload: bytes) -> None:
    assert opened(seal(SECRET, KEY, Answer(headers, payload, 400, 77), NOW_NS, WALL_NS)) is None


def test_the_head_is_as_its_drawing_says() -> None:
    assert (HEAD.size, SEALED_BYTES) == (8 + 8 + 4, 1 + 32 + 20)
