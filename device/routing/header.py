"""``x-edgekit-route`` on whatever a client is answered."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTE_KEY: Final = "edgekit.route"
"""Where a request's scope has the header's value, once it is not plain ``local``."""
ROUTED: Final = ("/v1/chat/completions", "/v1/completions")


class RouteHeader:
    """Says which way an answer came, of each that could have come another.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = scope.get(ROUTE_KEY, "local")
                MutableHeaders(scope=message)["x-edgekit-route"] = value
            await send(message)

        routed = scope["type"] == "http" and scope["path"] in ROUTED
        await self._app(scope, receive, tell if routed else send)
