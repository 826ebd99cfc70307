"""Conformance to RFC 6455: Autobahn's test suite against the raw endpoint of examples/echo.py."""
