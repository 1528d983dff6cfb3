"""`tensord infer`: one request from files."""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tensord.ipc.client import Client
from tensord.ipc.tensors import TensorSpec

from .output import Failure, console, microseconds
from .pictures import probabilities, read_image
from .places import Socket

ROWS_SHOWN = 20


def infer(
    model: Annotated[str, typer.Argument(help="A model, or model:version, or model:label.")],
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            help=".npy: the only input. .npz: the inputs by name. .png: one image, grey levels / 255.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write .npy (one output) or .npz (outputs by name) instead of printing."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 30.0,
    socket: Socket = None,
) -> None:
    """Run one request and print, or write, its outputs.

    [dim]tensord infer digits --input three.png[/]
    """
    with Client(None if socket is None else str(socket)) as client:
        spec = client.model(model)
        inputs = _read(input_file, spec.inputs)
        started = time.perf_counter_ns()
        outputs = client.infer(model, inputs, timeout=timeout)
        elapsed_us = (time.perf_counter_ns() - started) / 1000
    by_name = outputs if isinstance(outputs, dict) else {next(iter(spec.outputs)): outputs}
    if output is not None:
        _write(output, by_name)
        return
    for name, array in by_name.items():
        _print(spec.outputs[name], np.asarray(array))
    console.print(f"[dim]answered in {microseconds(elapsed_us)}[/]")


def _read(path: Path, inputs: Any) -> Any:
    """The inputs by name. Raises Failure."""
    specs: dict[str, TensorSpec] = dict(inputs)
    if path.suffix == ".npz":
        with _load(path) as archive:
            return {name: archive[name] for name in archive.files}
    if len(specs) != 1:
        raise Failure(f"the model takes {', '.join(specs)}: give them by name in an .npz file")
    ((name, spec),) = specs.items()
    if path.suffix == ".png":
        return {name: read_image(path, spec)}
    if path.suffix == ".npy":
        return {name: _load(path)}
    raise Failure(f"{path} is not .npy, .npz or .png: convert it first")


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{path} cannot be read: {error}") from error


def _write(path: Path, outputs: dict[str, Any]) -> None:
    try:
        if path.suffix == ".npz":
            np.savez(path, **outputs)
        elif path.suffix == ".npy" and len(outputs) == 1:
            np.save(path, next(iter(outputs.values())))
        else:
            raise Failure(f"{path}: outputs {', '.join(outputs)} go into an .npz file, a single one also into .npy")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error


def _print(spec: TensorSpec, array: Any) -> None:
    if not spec.labels:
        console.print(f"[bold]{spec.name}[/] {spec.dtype.label} {array.shape}")
        console.print(str(array))
        return
    for row, shares in enumerate(probabilities(array.reshape(len(array), -1))[:ROWS_SHOWN]):
        best = int(shares.argmax())
        console.print(f"[bold]{spec.name}[/] row {row}: [bold green]{spec.labels[best]}[/]  {shares[best]:.1%}")
    if len(array) > ROWS_SHOWN:
        console.print(f"… and {len(array) - ROWS_SHOWN} more rows: write them with --output")
