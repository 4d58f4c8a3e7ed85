"""ASGI middleware and error handlers, which apply to every request and response."""
