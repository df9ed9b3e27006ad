"""Prints docs/api.md, which is made of the OpenAPI document: `make docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

type Json = dict[str, Any]

DESCRIPTION = Path(__file__).resolve().parents[1] / "addons/kubetunnel/observe/openapi.json"
HEAD = """\
# The tunnel's own pages

Made by `make docs` of the OpenAPI document, which the tunnel serves at `/api/v1/openapi.json`.

They are answered at the tunnel's own names alone: `localhost`, `kube-tunnel.internal`, a loopback address, or the
address that the connection came to. A Service that has a `/health` of its own gets its requests: by its name in the
Host header, at its virtual IP, or as a proxy request. Web pages of other origins are refused. Other machines, where
the tunnel listens for them, are answered `/metrics` and the status alone of `/health`; for the rest they need the
token, as `X-Kube-Tunnel-Token`.

What changes something needs the token, which ends the dashboard's address in the log of the start, and an Origin:

```text
curl -X POST -H "X-Kube-Tunnel-Token: $TOKEN" -H "Origin: http://127.0.0.1:8080" -H "Content-Type: application/json" \\
  -d '{"target": "svc/api", "namespace": "shop", "ports": [":80"]}' http://127.0.0.1:8080/api/v1/listeners
```

Events come as they happen (`curl -N http://127.0.0.1:8080/api/v1/events`), each with its kind and its JSON in one line:

```text
event: service
data: {"zone":"cluster.local","namespace":"shop","service":"api",…}
```

`/dashboard` shows all of it.

## Requests

| | what | answers |
| --- | --- | --- |"""


def main() -> None:
    description = json.loads(DESCRIPTION.read_text())
    print(HEAD)
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            answers = ", ".join(_answer(code, found) for code, found in sorted(operation["responses"].items()))
            print(f"| `{method.upper()} {path}` | {operation['summary']} | {answers} |")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body:
                members = ", ".join(f"`{name}`{_optional(body, name)}" for name in body["properties"])
                print(f"| | The body: {members}. | |")
    print("\n## Shapes\n\nNothing else is in them. `?`: may be missing; null is told.")
    for name, schema in description["components"]["schemas"].items():
        print(f"\n### {name}\n")
        if "description" in schema:
            print(schema["description"] + "\n")
        print("| member | type | what |\n| --- | --- | --- |")
        for row in _rows(schema):
            print(row)


def _answer(code: str, response: Json) -> str:
    """`200 Service`; the errors are problems, and need no word."""
    schema = response.get("content", {}).get("application/json", {}).get("schema")
    if not code.startswith("2") or schema is None:
        return code
    return f"{code} {_type(schema)}"


def _rows(schema: Json) -> Iterator[str]:
    for name, member in schema["properties"].items():
        yield f"| `{name}`{_optional(schema, name)} | {_type(member)} | {member.get('description', '')} |"


def _optional(schema: Json, name: str) -> str:
    return "" if name in schema.get("required", ()) else "?"


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        if "properties" in schema:
            members = (f"`{name}`: {_type(member)}" for name, member in schema["properties"].items())
            return "{" + ", ".join(members) + "}"
        return f"object of {_type(schema['additionalProperties'])}" if schema.get("additionalProperties") else "object"
    return " or ".join(kind) if isinstance(kind, list) else str(kind or "anything")


if __name__ == "__main__":
    main()
