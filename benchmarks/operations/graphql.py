"""Questions to Dagster's webserver, as its UI asks them."""

import json
import urllib.request
from typing import Any


def ask(url: str, query: str, **variables: Any) -> Any:
    """The data that a webserver answers a question of GraphQL with; an error of it fails."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    assert "errors" not in found, found["errors"]
    return found["data"]
