"""The messages of `protocol/src/proto/culver.proto`, read when the program starts: no generated code is kept."""

import pathlib
import tempfile

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc

SCHEMA = pathlib.Path(__file__).resolve().parents[2] / "src" / "proto" / "culver.proto"


def load(path):
    """The message classes of a schema by their names, with the package: `culver.v1.Login`."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "descriptors"
        arguments = ["protoc", f"--proto_path={path.parent}", f"--descriptor_set_out={out}", path.name]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"{path} cannot be read as a protobuf schema")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name for file in files.file], pool)


MESSAGES = load(SCHEMA)


def message(name, /, **fields):
    """A message of the schema with these fields."""
    return MESSAGES[f"culver.v1.{name}"](**fields)


def encode(name, /, **fields):
    """The bytes of such a message."""
    return message(name, **fields).SerializeToString(deterministic=True)


def decode(name, body):
    """The message in these bytes."""
    try:
        return MESSAGES[f"culver.v1.{name}"].FromString(body)
    except DecodeError as error:
        raise ValueError(f"{body.hex()} is no {name}: {error}") from error
