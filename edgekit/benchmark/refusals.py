"""What an endpoint's refusals mean, and what to do about them."""

from __future__ import annotations

import json
from typing import Any

import httpx

from edgekit.errors import EndpointError, first_line

MAX_SAID_CHARS = 300
_BASE = "Give the base URL, which mostly ends in /v1, and try --endpoint chat or completions"


def refusal(url: str, model: str, response: httpx.Response, body: bytes) -> EndpointError:
    """Return the error of a response that is no success.

    Args:
        url: What was asked.
        model: The model's name in the request.
        response: Its status and headers.
        body: Read to its end.
    """
    status = response.status_code
    said, code = said_in(body)
    told = f": {said}" if said else ""
    if status in {401, 403}:
        return EndpointError(
            f"{url} asks for an API key ({status}){told}",
            "Put the key in an environment variable and name it: --api-key-env NAME",
        )
    if status == 404 and (code == "model_not_found" or "model" in said.lower()):
        return EndpointError(
            f"{url} has no model {model!r}{told}", "Choose one that its /models lists: --model"
        )
    if status in {404, 405}:
        return EndpointError(f"{url} is not there ({status}){told}", _BASE)
    if status == 429:
        wait = response.headers.get("retry-after")
        after = f", come back after {wait} s" if wait else ""
        return EndpointError(
            f"{url} takes no more requests (429{after}){told}",
            "Bench with fewer --streams or a lower --qps, or let the server queue more",
        )
    if status >= 500:
        return EndpointError(f"{url} failed ({status}){told}", "Look into the server's log")
    return EndpointError(
        f"{url} refused the request ({status}){told}", "" if said else "Look into the server's log"
    )


def said_in(body: bytes) -> tuple[str, str | None]:
    """Return the message and the code of an error's body: OpenAI's shape, or the text itself."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return _shortened(body.decode("utf-8", "replace")), None
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return _shortened(str(error)), None
    code = error.get("code")
    return _shortened(str(error.get("message", ""))), code if isinstance(code, str) else None


def broken(url: str, error: httpx.HTTPError, timeout_s: float) -> EndpointError:
    """Return the error of a request that got no whole response.

    Args:
        url: What was asked.
        error: How it ended.
        timeout_s: How long the client waits for the next byte.
    """
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EndpointError(
            f"cannot connect to {url}: {first_line(error)}", "Start the server, or check the URL"
        )
    if isinstance(error, httpx.TimeoutException):
        return EndpointError(
            f"{url} sent nothing for {timeout_s:g} s", "Allow more with --timeout-s"
        )
    return EndpointError(
        f"the connection to {url} broke off: {first_line(error)}",
        "Look into the server's log; of one that closes idle connections, ask with "
        "--fresh-connections",
    )


def _shortened(text: str) -> str:
    """Return one line, without the full stop that the message's own would double."""
    line = " ".join(text.split())[:MAX_SAID_CHARS]
    return line.rstrip(".")
