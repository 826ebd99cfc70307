"""A FastAPI app on the edge's HTTP port, and events from its routes to whoever is connected.

    pip install fastapi
    realtime serve examples/mount_fastapi.py

Then, with `realtime sub news:today` in a second terminal,
`curl -X POST 'http://127.0.0.1:3001/articles?title=Hello'`.
"""

from fastapi import FastAPI

from realtime import Conversations, Realtime

app = Realtime()
app.include(Conversations())
app.policy("news:*", durable=True)
app.allow("news:*", "subscribe", "history")

site = FastAPI()
app.mount("/", site)


@site.get("/")
def home() -> dict[str, int]:
    return {"online": app.connections.users}


@site.post("/articles")
async def publish(title: str) -> dict[str, int]:
    publication = await app.publish("news:today", "article", {"title": title})
    return {"number": publication.offset if publication else 0}


if __name__ == "__main__":
    app.run()
