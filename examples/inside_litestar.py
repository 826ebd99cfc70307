"""The edge inside of a Litestar app: its own port for WebSockets, its HTTP API below /realtime of the app's server.

    granian --interface asgi --port 8000 --working-dir examples inside_litestar:site

Then `curl http://127.0.0.1:8000/realtime/health`, and with `realtime sub news:today` in a second terminal
`curl -X POST 'http://127.0.0.1:8000/articles?title=Hello'`. One worker: the WebSocket port is there once.
"""

from litestar import Litestar, asgi, get, post

from realtime import Conversations, Realtime

app = Realtime()
app.include(Conversations())
app.policy("news:*", durable=True)
app.allow("news:*", "subscribe", "history")


@get("/", sync_to_thread=False)
def home() -> dict[str, int]:
    return {"online": app.connections.users}


@post("/articles")
async def publish(title: str) -> dict[str, int]:
    publication = await app.publish("news:today", "article", {"title": title})
    return {"number": publication.offset if publication else 0}


http_api = asgi("/realtime", is_mount=True)(app.asgi)
site = Litestar([home, publish, http_api], lifespan=[app.lifespan])
