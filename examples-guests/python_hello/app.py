"""A module in Python, without an SDK: answers requests, and has functions that other modules call.

Built, in this folder, with componentize-py 0.25 by

    componentize-py -d ../../wit -w full-module componentize app -o python_hello.wasm

The package `wit_world` is made from `wit/` by that command. To have an editor know it too:

    componentize-py -d ../../wit -w full-module bindings .bindings
"""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import call, config, context, log
from wit_world.imports.log import Level
from wit_world.imports.types import (
    Error_BadArguments,
    Error_Failed,
    Error_Refused,
    Payload,
    Payload_Bytes,
    Payload_Json,
    Request,
    Response,
)

# Lives as long as the instance does: between requests, when instances are reused.
answered = 0


class Handler(exports.Handler):
    def handle(self, request: Request) -> Response:
        global answered
        answered += 1
        path = request.target.partition("?")[0]
        if path == "/":
            return text(f"{config.get('greeting') or 'Hello'}, world !")
        if path == "/answered":
            return text(str(answered))
        if path == "/body":
            return Response(200, [("content-type", "application/octet-stream")], request.body)
        if path == "/log":
            if log.enabled(Level.INFO):
                log.log(Level.INFO, f"{request.action} {request.target}")
            return text(context.request_id())
        if path == "/call":
            arguments = json.dumps({"args": ["Python"]})
            try:
                result = call.call("worker", "work", "handle", Payload_Json(arguments), call.Options(None, False))
            except Err as error:
                raise Err(Error_Failed(f"call of work.handle: {error.value}")) from None
            return text(str(result.value))
        if path == "/refuse":
            raise Err(Error_Refused("as asked"))
        if path == "/misread":
            raise Err(Error_BadArguments("as asked"))
        if path == "/raise":
            raise ValueError("as asked")
        return text("no such path", 404)


def text(body: str, status: int = 200) -> Response:
    return Response(status, [("content-type", "text/plain; charset=utf-8")], body.encode())


def greet(name: str, greeting: str = "Hello") -> str:
    return f"{greeting}, {name} !"


def add(a: int, b: int) -> int:
    return a + b


FUNCTIONS = {"greet": greet, "add": add}


class Service(exports.Service):
    def functions(self) -> list[str]:
        return list(FUNCTIONS)

    def call(self, function: str, arguments: Payload) -> Payload:
        if isinstance(arguments, Payload_Bytes):
            raise Err(Error_BadArguments(f"{function}: takes JSON arguments, but bytes came"))
        try:
            given = json.loads(arguments.value)
            result = FUNCTIONS[function](*given.get("args", []), **given.get("kwargs", {}))
        except (TypeError, ValueError) as error:
            raise Err(Error_BadArguments(f"{function}: {error}")) from None
        return Payload_Json(json.dumps(result))
