"""`tensord infer`: one request from files."""

import time
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from tensord.ipc.client import Client
from tensord.ipc.tensors import TensorSpec

from .output import Failure, console, examples, microseconds
from .pictures import probabilities, read_image
from .places import Socket

ROWS_SHOWN = 20
EXAMPLES = examples(
    "tensord infer digits --input three.png",
    "tensord infer digits:1 -i images.npy -o logits.npy",
    "tensord infer pair -i inputs.npz -o outputs.npz --timeout 5",
)


def infer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or model:version, or model:label.")],
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help=".npy: the only input, first dimension rows. .npz: the inputs by name. .png: one image, levels / 255.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write .npy (one output) or .npz (outputs by name) instead of printing.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for the answer.")] = 30.0,
    socket: Socket = None,
) -> None:
    """Run one request and print, or write, its outputs."""
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
        return _load(path)
    if len(specs) != 1:
        raise Failure(f"the model takes {', '.join(specs)}: give them by name in an .npz file")
    ((name, spec),) = specs.items()
    if path.suffix == ".png":
        return {name: read_image(path, spec)}
    if path.suffix == ".npy":
        return {name: _load(path)}
    raise Failure(f"{path} is not .npy, .npz or .png: convert it first")


def _load(path: Path) -> Any:
    """The array, or the arrays by name, that the file holds as its name says. Raises Failure."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray) and path.suffix == ".npy":
                return loaded
            if not isinstance(loaded, np.ndarray) and path.suffix == ".npz":
                return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Failure(f"{path} cannot be read as {path.suffix}: write it again with numpy ({error})") from error
    raise Failure(f"{path} holds what its name does not say: rename it")


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
        console.print(str(array), markup=False)
        return
    for row, shares in enumerate(probabilities(array.reshape(len(array), -1))[:ROWS_SHOWN]):
        best = int(shares.argmax())
        console.print(f"[bold]{spec.name}[/] row {row}: [bold green]{escape(spec.labels[best])}[/]  {shares[best]:.1%}")
    if len(array) > ROWS_SHOWN:
        console.print(f"… and {len(array) - ROWS_SHOWN} more rows: write them with --output")
