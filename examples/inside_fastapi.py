"""The edge inside of a FastAPI app: its own port for WebSockets, its HTTP API below /realtime of the app's server.

    pip install fastapi
    granian --interface asgi --port 8000 --working-dir examples inside_fastapi:site

Then `curl http://127.0.0.1:8000/realtime/health`, and with `realtime sub news:today` in a second terminal
`curl -X POST 'http://127.0.0.1:8000/articles?title=Hello'`. One worker: the WebSocket port is there once.
"""

from fastapi import FastAPI

from realtime import Conversations, Realtime

app = Realtime()
app.include(Conversations())
app.policy("news:*", durable=True)
app.allow("news:*", "subscribe", "history")

site = FastAPI(lifespan=app.lifespan)
site.mount("/realtime", app.asgi)


@site.get("/")
def home() -> dict[str, int]:
    return {"online": app.connections.users}


@site.post("/articles")
async def publish(title: str) -> dict[str, int]:
    publication = await app.publish("news:today", "article", {"title": title})
    return {"number": publication.offset if publication else 0}
