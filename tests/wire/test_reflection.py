"""Reflection: off unless asked for; then it shows the public inference service, in both versions of the protocol."""

from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from support.appliance import Site, running
from tessera.oip.v1 import inference_pb2
from tessera.server.services.reflection import public_pool

pytestmark = pytest.mark.slow

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


async def ask(site: Site, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    """Ask one question of one version of the service."""
    made = site.channel().stream_stream(
        f"/{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = [answer async for answer in made(iter([reflection_pb2.ServerReflectionRequest(**request)]))]
    (answer,) = answers
    return answer


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_public_services_are_listed(tmp_path: Path, version: str) -> None:
    """The list names `inference.GRPCInferenceService` and our own door, not the operator's and not our package."""
    async with running(tmp_path, sealed=True, reflection=True) as site:
        answer = await ask(site, version, list_services="")
        names = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "tessera.v1.LicensingService", "grpc.health.v1.Health"} <= names
    assert not [name for name in names if "oip" in name or "Admin" in name]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_inference_service_can_be_built_from_reflection(tmp_path: Path, version: str) -> None:
    """The file that holds the service loads into an empty pool and describes the wire that is served."""
    async with running(tmp_path, sealed=True, reflection=True) as site:
        answer = await ask(site, version, file_containing_symbol="inference.GRPCInferenceService")
    pool = descriptor_pool.DescriptorPool()
    for raw in answer.file_descriptor_response.file_descriptor_proto:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(raw))
        assert b"tessera" not in raw
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelStreamInfer")
    assert method.output_type.full_name == "inference.ModelStreamInferResponse"
    ours = inference_pb2.ModelInferRequest.DESCRIPTOR
    shown = pool.FindMessageTypeByName("inference.ModelInferRequest")
    assert {(f.name, f.number, f.type) for f in ours.fields} == {(f.name, f.number, f.type) for f in shown.fields}


async def test_reflection_is_off_by_default(tmp_path: Path) -> None:
    """Without the setting the service is not there."""
    async with running(tmp_path, sealed=True) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(site, VERSIONS[0], list_services="")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_unknown_symbol_is_not_found(tmp_path: Path) -> None:
    """What is not served has no descriptor, the operator's service included."""
    async with running(tmp_path, sealed=True, reflection=True) as site:
        for symbol in ("tessera.v1.AdminService", "no.Such"):
            answer = await ask(site, VERSIONS[0], file_containing_symbol=symbol)
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_every_listed_service_has_a_descriptor() -> None:
    """Whatever the list names can be found in the pool."""
    from tessera.server.services.reflection import LISTED

    for name in LISTED:
        assert public_pool().FindServiceByName(name).full_name == name
