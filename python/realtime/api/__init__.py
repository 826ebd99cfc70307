"""The HTTP API: routes, who may call them, the port they have, and apps mounted beside them.

Litestar makes the answers (`http`), granian listens in the same process and loop (`listener`), `dev` holds what only a
server on one's own machine may do, `tokens` signs by the configuration. `static/` is the playground: plain HTML, CSS
and modules, shipped in the wheel, loading nothing from elsewhere.

Called by `cli`, which starts it beside the edge and ends it first.
"""
