"""Models as the Open Inference Protocol and Triton describe them: metadata, configuration, statistics, index."""

from collections.abc import Iterable

from tessera.keystore.package import Manifest, TensorSpec
from tessera.oip.v1 import inference_pb2 as pb
from tessera.server.engine.models import ModelEntry
from tessera.server.engine.statistics import Span, Statistics

PLATFORM = "pytorch_torch_export"
BACKEND = "tessera"
EXTENSIONS = ("model_configuration", "model_repository(index)", "statistics", "streaming", "tessera_receipts")
"""What ServerMetadata lists: Triton's names where an extension is Triton's."""

_TRITON_STATE = {"ready": "READY", "loading": "LOADING"}


def metadata(manifest: Manifest) -> pb.ModelMetadataResponse:
    """Return names, datatypes and shapes; -1 is the batch axis."""
    return pb.ModelMetadataResponse(
        name=manifest.model,
        versions=[str(manifest.version)],
        platform=PLATFORM,
        inputs=[_tensor(spec) for spec in manifest.inputs],
        outputs=[_tensor(spec) for spec in manifest.outputs],
    )


def config(manifest: Manifest, max_batch: int) -> pb.ModelConfigResponse:
    """Return Triton's configuration; dims leave the batch axis out, as `max_batch_size` > 0 demands."""
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=manifest.model,
            platform=PLATFORM,
            backend=BACKEND,
            max_batch_size=max_batch,
            input=[
                pb.ModelInput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[1:])
                for spec in manifest.inputs
            ],
            output=[
                pb.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[1:])
                for spec in manifest.outputs
            ],
            dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=0),
        )
    )


def statistics(manifest: Manifest, counted: Statistics, weight_bytes: int) -> pb.ModelStatisticsResponse:
    """Return what was counted since the server started. `compute_infer` holds a request's whole batch, as Triton's."""
    model = pb.ModelStatistics(
        name=manifest.model,
        version=str(manifest.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.samples,
        execution_count=counted.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=pb.StatisticDuration(count=counted.failures),
            queue=_duration(counted.queue),
            compute_infer=_duration(counted.compute),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(span))
            for size, span in sorted(counted.batches.items())
        ],
    )
    if weight_bytes:
        model.memory_usage.add(type="weights", id=0, byte_size=weight_bytes)
    return pb.ModelStatisticsResponse(model_stats=[model])


def index(entries: Iterable[ModelEntry], *, ready_only: bool) -> pb.RepositoryIndexResponse:
    """Return the index of `entries`; with `ready_only` those that can be called now."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=entry.offer.model,
                version=str(entry.offer.version),
                state=_TRITON_STATE.get(entry.state, "UNAVAILABLE"),
                reason="" if entry.state == "ready" else entry.reason or entry.state,
            )
            for entry in entries
            if entry.state == "ready" or not ready_only
        ]
    )


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _data_type(spec: TensorSpec) -> "pb.DataType.ValueType":
    return pb.DataType.Value("TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}")


def _duration(span: Span) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=span.count, ns=span.ns)
