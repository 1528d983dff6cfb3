"""What `tensord demo` shows: handwritten digits, read by the daemon through both lanes."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from tensord.ipc.client import Client
from tensord.ipc.tensors import TensorSpec

from .output import Failure, console, microseconds
from .pictures import picture, probabilities, read_image

Array = np.ndarray[Any, Any]

MODEL = "digits"
_LABEL = re.compile(r"label-(\d)")


def demonstrate(socket: Path, images: Path) -> int:
    """Send the images one by one, then all together through shared memory. Returns how many were read wrongly."""
    with Client(str(socket)) as client:
        spec = client.model(MODEL)
        ((_, image_spec),) = spec.inputs.items()
        ((_, scores_spec),) = spec.outputs.items()
        paths = sorted(images.glob("*.png"))
        if not paths:
            raise Failure(f"no images in {images}")
        rows = [read_image(path, image_spec) for path in paths]
        client.infer(MODEL, rows[0])  # the first request of a connection opens the model
        wrong = 0
        for path, row in zip(paths, rows, strict=True):
            started = time.perf_counter_ns()
            scores = np.asarray(client.infer(MODEL, row))
            elapsed_us = (time.perf_counter_ns() - started) / 1000
            wrong += _show(path, row, scores, scores_spec, elapsed_us)
        _show_arena(client, np.concatenate(rows))
    right = len(paths) - wrong
    console.print(f"[bold]{right} of {len(paths)}[/] read as they are labelled")
    console.print(f"serving on {socket}", soft_wrap=True)
    line = f"from tensord import Client; Client({str(socket)!r}).infer({MODEL!r}, image)"
    note = f"# image: float32 {image_spec.batch_shape(1)}, grey level / 255"
    console.print(f"  [cyan]{line}[/]   [dim]{note}[/]", soft_wrap=True)
    return wrong


def _show(path: Path, row: Array, scores: Array, spec: TensorSpec, elapsed_us: float) -> int:
    """One image as characters beside its reading; 1 if it was read wrongly."""
    shares = probabilities(scores)[0]
    best = int(shares.argmax())
    label = _LABEL.search(path.name)
    wrong = label is not None and label[1] != spec.labels[best]
    colour = "red" if wrong else "green"
    facts = [
        "",
        f"[bold {colour}]{spec.labels[best]}[/]",
        f"confidence {shares[best]:.1%}",
        f"answered in {microseconds(elapsed_us)}",
        f"[dim]{path.name}[/]",
    ]
    for number, line in enumerate(picture(row)):
        console.print(f"  {line}   {facts[number] if number < len(facts) else ''}")
    console.print()
    return int(wrong)


def _show_arena(client: Client, images: Array) -> None:
    """All images in one request that no process copies: written into the client's arena, read there by the worker."""
    with client.lease(MODEL, rows=len(images)) as slot:
        slot.input[:] = images
        started = time.perf_counter_ns()
        slot.infer()
        elapsed_us = (time.perf_counter_ns() - started) / 1000
    console.print(f"all {len(images)} together through shared memory, no copy: {microseconds(elapsed_us)}")
