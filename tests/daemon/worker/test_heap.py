"""What the heap keeps and what it gives back, counted in page faults and resident pages of a process of its own."""

import json
import subprocess
import sys
from typing import Any

BATCHES = 50
PIECES = 4
PIECE_BYTES = 3 * 1024**2
PAGES = PIECES * PIECE_BYTES // 4096

COUNT = f"""
import ctypes, json, resource
from tensord.daemon.worker.heap import keep_freed, mapped_pieces
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def take(count={PIECES}, nbytes={PIECE_BYTES}):
    pieces = [libc.malloc(nbytes) for _ in range(count)]
    for piece in pieces:
        ctypes.memset(piece, 1, nbytes)
    return pieces

def drop(pieces):
    for piece in pieces:
        libc.free(piece)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({BATCHES}):
        drop(take())
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / {BATCHES}

def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
"""


def _run(script: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", COUNT + script], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_what_a_batch_gave_back_is_there_for_the_next_one() -> None:
    figures = _run("before = faults(); keep_freed(); print(json.dumps([before, faults()]))")
    as_it_comes, kept = figures
    assert as_it_comes > 0.9 * PAGES, "the C library keeps freed memory by itself: the module is not needed any more"
    assert kept < 0.1 * PAGES


def test_what_a_model_took_while_it_was_loaded_goes_when_it_does() -> None:
    before, loaded, gone = _run(
        "keep_freed()\n"
        "before = resident_bytes()\n"
        "with mapped_pieces(): weights = take(64); drop(take(64))\n"
        "above = take(1)\n"  # what is taken later must not hold it
        "loaded = resident_bytes(); drop(weights)\n"
        "print(json.dumps([before, loaded, resident_bytes()]))"
    )
    weights_bytes = 64 * PIECE_BYTES
    assert 0.95 * weights_bytes < loaded - before < 1.3 * weights_bytes
    assert gone - before < 0.2 * weights_bytes
