"""Requests of many sizes share batches and padding, and each gets its own answer, whatever the lane and the company."""

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tensord import AsyncClient, Client
from tensord.ipc.errors import OutputTooSmall, TooManyRows, WrongShape, WrongTensors
from tensord.ipc.tensors import Dimension
from tensord.ipc.wire import FrameType, encode_arena

if TYPE_CHECKING:
    from tests.process.conftest import Array, Connect, Daemon, Received

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def tokens(generator: np.random.Generator, *, masked: bool) -> "dict[str, Array]":
    """A random request of up to four sentences, padded by the client itself where it sends a mask."""
    rows, length = int(generator.integers(1, 5)), int(generator.integers(1, 65))
    inputs: dict[str, Array] = {"ids": generator.integers(0, 100, (rows, length))}
    if masked:
        lengths = generator.integers(1, length + 1, (rows, 1))
        inputs["mask"] = (np.arange(length) < lengths).astype(np.int64)
    return inputs


def check_tokens(inputs: "dict[str, Array]", outputs: "dict[str, Array]") -> None:
    ids = inputs["ids"]
    mask = inputs.get("mask", np.ones_like(ids))
    np.testing.assert_array_equal(outputs["doubled"], ids * 2 * mask)
    np.testing.assert_allclose(outputs["mean"][:, 0], (ids * mask).sum(1) / mask.sum(1), rtol=1e-5)


def image(generator: np.random.Generator, rows: int, height: int, width: int) -> "Array":
    """Random levels; sometimes none of them is found."""
    brightest = generator.choice([0.4, 0.6, 1.0])
    return generator.uniform(0, brightest, (rows, height, width)).astype(np.float32)


def check_found(levels: "Array", outputs: "dict[str, Array]") -> None:
    counts = (levels > 0.5).sum((1, 2))
    np.testing.assert_array_equal(outputs["count"], counts)
    assert outputs["boxes"].shape == (len(levels), counts.max(), 2)
    for row, count in enumerate(counts):
        expected = np.sort(levels[row], axis=None)[::-1][:count]
        np.testing.assert_array_equal(outputs["boxes"][row, :count, 1], expected)
        assert not outputs["boxes"][row, count:].any(), "what a row does not count is zero"


def test_mixed_lengths_are_batched_together_and_told_apart(daemon: "Daemon") -> None:
    generator = np.random.default_rng(1)
    batches = daemon.counter("tokens", "batches")
    padded = daemon.counter("tokens", "padded_bytes")
    with Client(daemon.socket) as client:
        requests = [tokens(generator, masked=index % 3 == 0) for index in range(300)]
        for inputs, future in [(inputs, client.submit("tokens", inputs)) for inputs in requests]:
            check_tokens(inputs, future.result())
    assert daemon.counter("tokens", "batches") - batches < 300, "requests of different sizes ran together"
    assert daemon.counter("tokens", "padded_bytes") > padded


def test_many_clients_of_both_lanes_get_their_own_answers(daemon: "Daemon") -> None:
    async def one(seed: int) -> None:
        generator = np.random.default_rng(seed)
        async with AsyncClient(daemon.socket) as client:
            for turn in range(25):
                inputs = tokens(generator, masked=turn % 2 == 0)
                check_tokens(inputs, await client.infer("tokens", inputs))
                levels = image(generator, 2, *map(int, generator.integers(1, 33, 2)))
                sizes = dict(zip(("height", "width"), levels.shape[1:], strict=True))
                async with client.lease("detect", rows=2, sizes=sizes) as slot:
                    slot.inputs["image"][:] = levels
                    check_found(levels, await slot.infer())

    async def all_of_them() -> None:
        await asyncio.gather(*(one(seed) for seed in range(8)))

    asyncio.run(all_of_them())


def test_outputs_are_as_large_as_what_was_found(daemon: "Daemon") -> None:
    generator = np.random.default_rng(2)
    with Client(daemon.socket) as client:
        requests = [image(generator, int(generator.integers(1, 4)), 8, 8) for _ in range(100)]
        for levels, future in [(levels, client.submit("detect", levels)) for levels in requests]:
            check_found(levels, future.result())


def test_a_slot_holds_the_optional_inputs_that_are_named(daemon: "Daemon") -> None:
    with Client(daemon.socket) as client:
        with client.lease("tokens", rows=2, sizes={"tokens": 16}) as slot:
            assert list(slot.inputs) == ["ids"]
            slot.inputs["ids"][:] = 3
            check_tokens({"ids": slot.inputs["ids"]}, slot.infer())
        with client.lease("tokens", rows=2, sizes={"tokens": 16}, optional=["mask"]) as slot:
            slot.inputs["ids"][:] = np.arange(32).reshape(2, 16)
            slot.inputs["mask"][:] = np.arange(16) < 5
            check_tokens(slot.inputs, slot.infer())


def test_the_specification_says_what_is_free(daemon: "Daemon") -> None:
    with Client(daemon.socket) as client:
        model = client.model("detect")
        assert model.inputs["image"].shape == (Dimension("height", 32), Dimension("width", 32))
        assert model.outputs["boxes"].shape == (Dimension("found", 1024, from_data=True), 2)
        assert client.model("tokens").inputs["mask"].optional


def test_steps_run_before_and_after_the_model_and_are_timed(daemon: "Daemon") -> None:
    levels = np.zeros((3, 4, 4, 3), np.uint8)
    for row, channel in enumerate((1, 2, 0)):
        levels[row, ..., channel] = 200
    with Client(daemon.socket) as client:
        outputs = client.infer("pixels", levels)
        labels = client.model("pixels").outputs["class"].labels
    assert [labels[best] for best in outputs["class"][:, 0]] == ["green", "blue", "red"]
    x = (levels / 255 - [0.5, 0.4, 0.3]) / 0.2
    powers = np.exp(x.mean((1, 2)) * 10)
    expected = -np.sort(-powers / powers.sum(1, keepdims=True), axis=1)[:, :2]
    np.testing.assert_allclose(outputs["score"], expected, atol=1e-5)
    phases = next(model.phases for model in daemon.status().models if model.name == "pixels")
    assert phases["preprocess"].count == phases["compute"].count == phases["postprocess"].count >= 1


@pytest.mark.parametrize(
    ("inputs", "error", "expected"),
    [
        ({"ids": np.zeros((1, 65), np.int64)}, WrongShape, "(rows, tokens ≤ 64)"),
        ({"ids": np.zeros((1, 0), np.int64)}, WrongShape, "(rows, tokens ≤ 64)"),
        ({"ids": np.zeros((1, 5), np.int64), "mask": np.ones((1, 4), np.int64)}, WrongShape, "(1, 5)"),
        ({"ids": np.zeros((2, 5), np.int64), "mask": np.ones((1, 5), np.int64)}, WrongShape, "(2, 5)"),
        ({"mask": np.ones((1, 5), np.int64)}, WrongTensors, "ids, mask"),
        ({"ids": np.zeros((4097, 5), np.int64)}, TooManyRows, "4096"),
    ],
)
def test_what_does_not_fit_is_refused_by_client_and_daemon(
    daemon: "Daemon", connect: "Connect", inputs: "dict[str, Array]", error: type[Any], expected: str
) -> None:
    with Client(daemon.socket) as client, pytest.raises(error, match=expected.replace("(", r"\(").replace(")", r"\)")):
        client.infer("tokens", inputs)
    raw = connect()
    opened = raw.open("tokens")
    names = [spec.name for spec in opened.spec.inputs]
    headers = [raw.inline(names.index(name), array) for name, array in inputs.items()]
    payload = b"".join(array.tobytes() for array in inputs.values())
    refusal = raw.ask(raw.infer(opened.handle, headers, payload)).error()
    assert isinstance(refusal, error)
    assert expected in str(refusal)


def test_an_arena_with_a_range_of_no_bytes_stays_until_its_request_is_through(
    daemon: "Daemon", connect: "Connect"
) -> None:
    raw = connect()
    opened = raw.open("detect")
    for _ in range(3):
        arena = raw.attach(4096)
        levels = np.full((1, 2, 2), 0.9, np.float32)
        asked = raw.infer(
            opened.handle, [raw.inline(0, levels)], levels.tobytes(), outputs=[raw.place(0, 0, arena.number, 0)]
        )
        refusal = raw.ask(asked, encode_arena(FrameType.DETACH, 0, arena.number, 0)).error()
        assert isinstance(refusal, OutputTooSmall), "the worker still had the arena"


def test_an_output_that_turns_out_too_large_says_how_much_it_needs(daemon: "Daemon", connect: "Connect") -> None:
    raw = connect()
    opened = raw.open("detect")
    arena = raw.attach(65536)
    levels = np.full((1, 4, 4), 0.9, np.float32)
    arena.write(0, levels)
    arena.write(1024, np.full(4096, 7, np.uint8))

    def ask(room: int) -> "Received":
        source = raw.placed(0, levels, arena.number, 0)
        target = raw.place(0, room, arena.number, 1024)
        return raw.ask(raw.infer(opened.handle, [source], outputs=[target]))

    refusal = ask(127).error()
    assert isinstance(refusal, OutputTooSmall)
    assert (refusal.tensor, refusal.needed_bytes, refusal.given_bytes) == ("boxes", 16 * 2 * 4, 127)
    assert set(arena.memory[1024:5120]) == {7}, "nothing was written"
    _, headers = ask(128).result()
    assert headers[0].shape == (1, 16, 2)
    assert set(arena.memory[1024 + 128 : 5120]) == {7}
