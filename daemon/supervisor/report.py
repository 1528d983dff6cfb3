"""The supervisor's state as an operator reads it. Only renders what others count."""

import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from tensord.ipc.statistics import Block, Counter, Phase, Word, merge

from .. import control
from ..models.manifest import Manifest
from .workers import WorkerPlace

if TYPE_CHECKING:
    from .supervisor import Supervisor


def report(supervisor: "Supervisor") -> control.InstanceStatus:
    """A snapshot of the whole instance."""
    places = list(supervisor.places.values())
    blocks = [supervisor.page.block, *(place.page.block for place in places)]
    models = [
        _model(index, manifest, supervisor.catalog.labels(manifest), places, blocks)
        for index, manifest in supervisor.catalog.manifests().items()
    ]
    return control.InstanceStatus(
        version=version("tensord"),
        pid=os.getpid(),
        uptime_s=round(time.monotonic() - supervisor.started_s, 3),
        state=supervisor.state,
        reasons=supervisor.reasons(),
        epoch=supervisor.knobs.epoch,
        converging=supervisor.converging(),
        pending_restart=list(supervisor.knobs.store.pending_restart()),
        socket=str(supervisor.config.socket),
        arenas=len(supervisor.arenas),
        arena_bytes=supervisor.arenas.promised_bytes,
        frontend=_frontend(supervisor),
        workers=[_worker(place) for place in places],
        models=models,
    )


def _frontend(supervisor: "Supervisor") -> control.FrontendStatus:
    words = supervisor.page.block.words
    return control.FrontendStatus(
        pid=None if supervisor.frontend is None else supervisor.frontend.pid,
        generation=supervisor.frontend_generation,
        restarts=supervisor.frontend_restarts,
        connections=words[Word.CONNECTIONS],
        connections_total=words[Word.CONNECTIONS_TOTAL],
        queued=words[Word.QUEUED],
        running=words[Word.RUNNING],
        ingest_bytes=supervisor.ingest_bytes,
        ingest_used_bytes=words[Word.INGEST_USED_BYTES],
        notes=["the cache's second tier does not answer"] if words[Word.SECOND_TIER_FAILING] else [],
    )


def _device_memory(words: memoryview) -> control.DeviceMemory | None:
    if not words[Word.DEVICE_TOTAL_BYTES]:
        return None
    return control.DeviceMemory(
        allocated_bytes=words[Word.DEVICE_ALLOCATED_BYTES],
        free_bytes=words[Word.DEVICE_FREE_BYTES],
        total_bytes=words[Word.DEVICE_TOTAL_BYTES],
        pinned_bytes=words[Word.PINNED_BYTES],
        unpinned_bytes=words[Word.UNPINNED_BYTES],
    )


def _worker(place: WorkerPlace) -> control.WorkerStatus:
    return control.WorkerStatus(
        device=place.device,
        cores=list(place.cores),
        state=str(place.state),
        activity=place.page.pulse().activity.name.lower(),
        pid=None if place.child is None else place.child.pid,
        uptime_s=round(place.uptime_s, 3),
        restarts=place.restarts,
        memory_bytes=place.page.block.words[Word.MEMORY_BYTES],
        models_loaded=len(place.loaded),
        device_memory=_device_memory(place.page.block.words),
        notes=list(place.notes.values()),
    )


def _model(
    index: int, manifest: Manifest, labels: tuple[str, ...], places: list[WorkerPlace], blocks: list[Block]
) -> control.ModelStatus:
    statistics = merge(blocks, index)
    phases = {}
    for phase in Phase:
        histogram = statistics.phase(phase)
        phases[phase.name.lower()] = control.PhaseTimes(
            histogram.count,
            *(_rounded(histogram.percentile_us(fraction)) for fraction in (0.5, 0.95, 0.99)),
        )
    return control.ModelStatus(
        name=manifest.name,
        version=manifest.version,
        labels=list(labels),
        ready_on=[place.device for place in places if index in place.loaded and place.joined],
        broken_on={place.device: place.broken[index] for place in places if index in place.broken},
        required=manifest.required,
        counters={counter.name.lower(): statistics[counter] for counter in Counter},
        phases=phases,
        memory_bytes={place.device: place.model_bytes.get(index, 0) for place in places if index in place.loaded},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
