"""Our messages are Triton's on the wire, field for field; both live in one process."""

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from tessera.oip.v1 import PUBLIC_SERVICE
from tessera.oip.v1 import inference_pb2 as ours

OURS = "tessera.oip.v1."
THEIRS = "inference."


def messages(parent: Descriptor | None = None) -> list[Descriptor]:
    """Return every message that we declare, nested ones and map entries too."""
    level = list((parent.nested_types_by_name if parent else ours.DESCRIPTOR.message_types_by_name).values())
    return level + [deeper for message in level for deeper in messages(message)]


def theirs(name: str) -> Descriptor:
    """Return Triton's message of the same name."""
    first, *rest = name.removeprefix(OURS).split(".")
    for module in (service_pb2, model_config_pb2):
        if first in module.DESCRIPTOR.message_types_by_name:
            found: Descriptor = module.DESCRIPTOR.message_types_by_name[first]
            for part in rest:
                found = found.nested_types_by_name[part]
            return found
    raise AssertionError(f"Triton has no {name}")


def facts(field: FieldDescriptor) -> tuple[object, ...]:
    """Return what decides a field's bytes and its meaning."""
    pointed = field.message_type or field.enum_type
    target = "" if pointed is None else pointed.full_name.removeprefix(OURS).removeprefix(THEIRS)
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    return field.number, field.name, field.type, field.is_repeated, target, oneof, field.is_packed


@pytest.mark.parametrize("message", messages(), ids=lambda message: message.full_name.removeprefix(OURS))
def test_every_field_has_tritons_number_type_and_label(message: Descriptor) -> None:
    """Each field we declare is in Triton's message with the same number, name, type, label, target and oneof.

    The oneof is left out for the two fields of ModelConfig whose siblings we do not declare.
    """
    other = theirs(message.full_name)
    assert message.GetOptions().map_entry == other.GetOptions().map_entry
    for field in message.fields:
        mine, his = facts(field), facts(other.fields_by_number[field.number])
        if message.name == "ModelConfig":
            mine, his = mine[:5], his[:5]
        assert mine == his


def test_requests_and_answers_leave_no_field_out() -> None:
    """Outside Triton's configuration we declare every field, so nothing that a client sends is lost."""
    partial = {"ModelConfig", "ModelInput", "ModelOutput", "ModelDynamicBatching"}
    for message in messages():
        if message.name not in partial:
            assert set(message.fields_by_number) == set(theirs(message.full_name).fields_by_number)


def test_datatypes_have_tritons_numbers() -> None:
    """The enum is the same, name by name."""
    enum: EnumDescriptor = ours.DESCRIPTOR.enum_types_by_name["DataType"]
    other = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    assert {value.name: value.number for value in enum.values} == {value.name: value.number for value in other.values}


def test_methods_have_tritons_shapes() -> None:
    """Each RPC exists under the public name with the same messages and the same streaming."""
    other = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert other.full_name == PUBLIC_SERVICE
    for method in ours.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        his = other.methods_by_name[method.name]
        assert method.input_type.name == his.input_type.name
        assert method.output_type.name == his.output_type.name
        assert method.client_streaming == his.client_streaming
        assert method.server_streaming == his.server_streaming


def test_bytes_of_one_are_the_other() -> None:
    """A message written by Triton's code is read by ours and written back to the same bytes."""
    theirs_ = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="7", raw_input_contents=[b"abc"])
    theirs_.inputs.add(name="x", datatype="UINT8", shape=[1, -1, 3]).parameters["p"].double_param = 0.5
    theirs_.outputs.add(name="y")
    raw = theirs_.SerializeToString(deterministic=True)
    assert ours.ModelInferRequest.FromString(raw).SerializeToString(deterministic=True) == raw
