"""The engine: sealed programs on a device, batches formed at the last moment, models that come and go."""

from tessera.server.engine.batcher import Answer, Batcher, Job
from tessera.server.engine.executor import Executor
from tessera.server.engine.models import ModelDirectory, ModelEntry, ModelState
from tessera.server.engine.program import LoadedProgram, load_sealed
from tessera.server.engine.variants import load_variant

__all__ = [
    "Answer",
    "Batcher",
    "Executor",
    "Job",
    "LoadedProgram",
    "ModelDirectory",
    "ModelEntry",
    "ModelState",
    "load_sealed",
    "load_variant",
]
