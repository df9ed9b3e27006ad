"""What the messages of a gRPC method are: descriptors, from files of the user's or as the pods gave them.

A descriptor is google/protobuf/descriptor.proto's; a file of them is a FileDescriptorSet, as protoc
(`--include_imports --descriptor_set_out=FILE`) and buf (`buf build -o FILE`) make it. The protobuf library is imported
at the first use: it takes some 50 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# protobuf's well-known types; servers may leave them out
_BROUGHT = frozenset(
    f"google/protobuf/{name}.proto"
    for name in (
        "any", "api", "descriptor", "duration", "empty", "field_mask", "source_context", "struct", "timestamp", "type",
        "wrappers",
    )
)  # fmt: skip


class DescriptorsError(ValueError):
    """Descriptors that cannot be used; says which, and why."""


@dataclass(frozen=True, slots=True)
class GrpcMethod:
    """The types of one method: message descriptors of the protobuf library, and the pool that they are in."""

    input_type: Any
    output_type: Any
    pool: Any
    server_streams: bool = False


class DescriptorPool:
    """The methods that a set of file descriptors describes."""

    def __init__(self, serialized_files: Iterable[bytes]) -> None:
        """Takes FileDescriptorProtos in any order. Raises DescriptorsError."""
        from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool
        from google.protobuf.message import DecodeError

        database = descriptor_database.DescriptorDatabase()
        names: set[str] = set()
        wanted: set[str] = set()
        try:
            for serialized in serialized_files:
                file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
                if file.name not in names:
                    database.Add(file)
                names.add(file.name)
                wanted.update(file.dependency)
            for name in _well_known(wanted - names):
                database.Add(name)
        except (DecodeError, descriptor_database.DescriptorDatabaseConflictingDefinitionError) as e:
            raise DescriptorsError(f"No file descriptors, or some that contradict each other: {e}") from e
        self._pool = descriptor_pool.DescriptorPool(database)

    def method(self, path: str) -> GrpcMethod | None:
        """The method of a request's path, `/package.Service/Method`; None for one that is not in here.

        Raises:
            DescriptorsError: a file that it needs is missing or broken.
        """
        service, _, name = path.removeprefix("/").partition("/")
        try:
            found = self._pool.FindServiceByName(service).methods_by_name.get(name)
            if found is None:
                return None
            return GrpcMethod(found.input_type, found.output_type, self._pool, found.server_streaming)
        except KeyError:
            return None
        except TypeError as e:
            raise DescriptorsError(
                f"The descriptors of {service} are not whole ({e}). protoc needs --include_imports."
            ) from e


def read_descriptors(path: Path) -> DescriptorPool:
    """The methods of a FileDescriptorSet. Raises DescriptorsError."""
    from google.protobuf import descriptor_pb2
    from google.protobuf.message import DecodeError

    try:
        found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    except OSError as e:
        raise DescriptorsError(f"grpc.descriptors: {path} cannot be read: {e.strerror or e}.") from e
    except DecodeError as e:
        raise DescriptorsError(
            f"grpc.descriptors: {path} is no FileDescriptorSet (protoc --descriptor_set_out)."
        ) from e
    try:
        return DescriptorPool(file.SerializeToString() for file in found.file)
    except DescriptorsError as e:
        raise DescriptorsError(f"grpc.descriptors: {path}: {e}") from e


def dependencies(serialized_file: bytes) -> tuple[str, tuple[str, ...]]:
    """Name of a FileDescriptorProto, and the names of those it needs that are not the protobuf library's own.

    Raises DescriptorsError.
    """
    from google.protobuf import descriptor_pb2
    from google.protobuf.message import DecodeError

    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(serialized_file)
    except DecodeError as e:
        raise DescriptorsError("What came is no file descriptor.") from e
    own = {each.name for each in _well_known(file.dependency)}
    return file.name, tuple(name for name in file.dependency if name not in own)


def _well_known(names: Iterable[str]) -> list[Any]:
    """The google/protobuf/….proto among these files, and what they need: the library brings them."""
    from google.protobuf import descriptor_pb2

    found: dict[str, Any] = {}
    left = [name for name in names if name in _BROUGHT]
    while left:
        name = left.pop()
        if name not in found:
            module = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
            found[name] = file = descriptor_pb2.FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            left += list(file.dependency)
    return list(found.values())
