"""A gRPC service of two files with nested, repeated and well-known types, as protoc would describe it."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field


def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """shop/money.proto, shop/orders.proto: the second needs the first, and google/protobuf/timestamp.proto."""
    money = descriptor_pb2.FileDescriptorProto(name="shop/money.proto", package="shop", syntax="proto3")
    amount = money.message_type.add(name="Money")
    amount.field.add(name="currency", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    amount.field.add(name="minor_units", number=2, type=Field.TYPE_INT64, label=Field.LABEL_OPTIONAL)
    orders = descriptor_pb2.FileDescriptorProto(name="shop/orders.proto", package="shop", syntax="proto3")
    orders.dependency.extend([money.name, timestamp_pb2.DESCRIPTOR.name])
    order = orders.message_type.add(name="Order")
    order.field.add(name="order_id", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    order.field.add(name="tags", number=2, type=Field.TYPE_STRING, label=Field.LABEL_REPEATED)
    for number, name, kind in ((3, "total", ".shop.Money"), (4, "placed_at", ".google.protobuf.Timestamp")):
        order.field.add(
            name=name, number=number, type=Field.TYPE_MESSAGE, label=Field.LABEL_OPTIONAL, type_name=kind
        )  # fmt: skip
    service = orders.service.add(name="Orders")
    service.method.add(name="Place", input_type=".shop.Order", output_type=".shop.Order")
    return [money, orders]


def an_order() -> bytes:
    """A message of `shop.Order`."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    for file in files():
        pool.Add(file)
    order = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))(order_id="o-1", tags=["a", "b"])
    order.total.currency, order.total.minor_units = "EUR", 1250
    order.placed_at.seconds = 1_700_000_000
    data: bytes = order.SerializeToString()
    return data
