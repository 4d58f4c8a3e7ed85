"""The REST interface: routes, JSON schemas, authentication, and the shared parts of the server that routes use."""
