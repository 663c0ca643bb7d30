"""Server reflection, v1 and v1alpha, off by default (rule W-31).

Our messages of the Open Inference Protocol live in a proto package of their own, so that they can share a process with
other people's; what a peer is to see is the public package `inference`. So reflection gets a descriptor pool of its
own, in which the file is copied under its public names. Version 1 of the protocol is byte for byte v1alpha under
another service name.
"""

from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, aio

from tessera.oip.v1 import PUBLIC_SERVICE, inference_pb2
from tessera.v1 import licensing_pb2, types_pb2

V1_SERVICE_NAME: Final = "grpc.reflection.v1.ServerReflection"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
LISTED: Final = (PUBLIC_SERVICE, "tessera.v1.LicensingService", HEALTH_SERVICE, SERVICE_NAME, V1_SERVICE_NAME)
"""Services that reflection names; the operator's is not among them."""

_PUBLIC_PACKAGE: Final = PUBLIC_SERVICE.rpartition(".")[0]


def public_pool() -> descriptor_pool.DescriptorPool:
    """Return a pool with everything that is served, the inference protocol under its public name."""
    pool = descriptor_pool.DescriptorPool()
    for file in (types_pb2, licensing_pb2, health_pb2):
        pool.Add(_copy(file.DESCRIPTOR))
    pool.Add(public_inference_file())
    alpha = _copy(reflection_pb2.DESCRIPTOR)
    pool.Add(alpha)
    pool.Add(_renamed(alpha, "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"))
    return pool


def public_inference_file() -> descriptor_pb2.FileDescriptorProto:
    """Return our inference protocol as it looks from outside: package `inference`, nothing of ours in a name."""
    return _renamed(_copy(inference_pb2.DESCRIPTOR), "inference.proto", _PUBLIC_PACKAGE)


def add_reflection(server: grpc.aio.Server) -> None:
    """Register both versions of the reflection service."""
    servicer = aio.ReflectionServicer(LISTED, pool=public_pool())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": method}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1_SERVICE_NAME, handlers),))


def _copy(descriptor: Any) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto


def _renamed(
    source: descriptor_pb2.FileDescriptorProto, file_name: str, package: str
) -> descriptor_pb2.FileDescriptorProto:
    """Return a copy of a file without dependencies under another file and package name, references included."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(source)
    old = f".{source.package}."
    copy.name, copy.package = file_name, package
    for message in copy.message_type:
        _rename_fields(message, old, f".{package}.")
    for service in copy.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, f".{package}.", 1)
            method.output_type = method.output_type.replace(old, f".{package}.", 1)
    return copy


def _rename_fields(message: descriptor_pb2.DescriptorProto, old: str, new: str) -> None:
    for field in message.field:
        if field.type_name.startswith(old):
            field.type_name = new + field.type_name[len(old) :]
    for nested in message.nested_type:
        _rename_fields(nested, old, new)
