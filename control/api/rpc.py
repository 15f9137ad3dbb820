"""From a service of nyx_v1.proto and an object with its methods to what gRPC serves: one way for all calls.

Messages are parsed here, so that what is none of ours is a clear error instead of gRPC's own; every error becomes a status by the
table of `control.api.errors`; a call that the client leaves closes what its method holds.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from control.api.errors import answer, code_of
from control.wire import Refusal

UNARY_TIME: Final = (
    330.0  # seconds that a call with one answer may take, if its client gives it more: an upgrade may compile kernels
)

Context = Any  # grpc.aio.ServicerContext of raw bytes

_log: Final = logging.getLogger(__name__)


def handler(service: ServiceDescriptor, methods: object) -> grpc.GenericRpcHandler:
    """What serves `service`. Of its method GetInfo, `methods` has get_info, which takes a message, or an iterator over them."""
    made = {method.name: _method(method, getattr(methods, _snake(method.name))) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, made)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _method(method: MethodDescriptor, call: Callable[[Any], Any]) -> Any:
    parse = _parser(GetMessageClass(method.input_type), method.input_type.name)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(_both(call, parse))
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_many(call, parse))
    return grpc.unary_unary_rpc_method_handler(_one(call, parse))


def _parser(kind: type[Message], name: str) -> Callable[[bytes], Message]:
    def parse(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise Refusal("bad_request", f"these bytes are no nyx.v1.{name}") from error

    return parse


def _one(call: Callable[[Message], Awaitable[Message]], parse: Callable[[bytes], Message]) -> Any:
    async def serve(data: bytes, context: Context) -> bytes:
        try:
            async with asyncio.timeout(UNARY_TIME):
                return (await call(parse(data))).SerializeToString()
        except Exception as error:  # noqa: BLE001  one bad call must not end the control process
            return bytes(await _fail(context, error))

    return serve


def _many(call: Callable[[Message], AsyncGenerator[Message, None]], parse: Callable[[bytes], Message]) -> Any:
    async def serve(data: bytes, context: Context) -> None:
        try:
            await _write(call(parse(data)), context)
        except Exception as error:  # noqa: BLE001  as above
            await _fail(context, error)

    return serve


def _both(call: Callable[[AsyncIterator[Message]], AsyncGenerator[Message, None]], parse: Callable[[bytes], Message]) -> Any:
    async def serve(requests: AsyncIterator[bytes], context: Context) -> None:
        async def parsed() -> AsyncGenerator[Message, None]:
            async for data in requests:
                yield parse(data)

        try:
            async with aclosing(parsed()) as messages:
                await _write(call(messages), context)
        except Exception as error:  # noqa: BLE001  as above
            await _fail(context, error)

    return serve


async def _write(answers: AsyncGenerator[Message, None], context: Context) -> None:
    async with aclosing(answers):
        async for message in answers:
            await context.write(message.SerializeToString())


async def _fail(context: Context, error: Exception) -> Any:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError):
        raise error  # the call is over: there is nobody to tell
    if code_of(error) == "internal":
        _log.error("a call failed", exc_info=error)
    found = answer(error)
    await context.abort(found.status, found.text, found.trailing)
