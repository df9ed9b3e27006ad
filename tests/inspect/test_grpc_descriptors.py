"""Descriptors from files and from lists of files: what they describe, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from kubetunnel.inspect.grpc_descriptors import DescriptorPool, DescriptorsError, dependencies, read_descriptors
from tests.inspect import shop_proto


def set_of(*files: descriptor_pb2.FileDescriptorProto) -> bytes:
    data: bytes = descriptor_pb2.FileDescriptorSet(file=files).SerializeToString()
    return data


def test_a_method_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.binpb"
    path.write_bytes(set_of(*shop_proto.files()))
    pool = read_descriptors(path)
    method = pool.method("/shop.Orders/Place")
    assert method is not None
    assert (method.input_type.full_name, method.output_type.full_name) == ("shop.Order", "shop.Order")
    assert pool.method("/shop.Orders/Nothing") is None
    assert pool.method("/shop.Nobody/Place") is None
    assert pool.method("/") is None
    assert pool.method("") is None


def test_files_in_any_order() -> None:
    pool = DescriptorPool(file.SerializeToString() for file in reversed(shop_proto.files()))
    assert pool.method("/shop.Orders/Place") is not None


def test_a_set_without_what_it_imports(tmp_path: Path) -> None:
    pool = DescriptorPool([shop_proto.files()[1].SerializeToString()])
    with pytest.raises(DescriptorsError, match="--include_imports"):
        pool.method("/shop.Orders/Place")


def test_two_files_that_contradict_each_other() -> None:
    money, orders = shop_proto.files()
    other = descriptor_pb2.FileDescriptorProto(name="other.proto", package="shop", syntax="proto3")
    other.message_type.add(name="Money")
    pool_of = [file.SerializeToString() for file in (money, orders, other)]
    with pytest.warns(RuntimeWarning, match=r"shop\.Money"):  # the library's; the first one is taken
        assert DescriptorPool(pool_of).method("/shop.Orders/Place") is not None


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b'syntax = "proto3";', None])
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "shop.proto"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DescriptorsError, match=f"grpc.descriptors: {path}"):
        read_descriptors(path)


def test_what_a_file_needs_beside_the_well_known_types() -> None:
    assert dependencies(shop_proto.files()[1].SerializeToString()) == ("shop/orders.proto", ("shop/money.proto",))
    with pytest.raises(DescriptorsError):
        dependencies(b"\xff\xff")
