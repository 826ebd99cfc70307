"""A server without the envelope: whatever comes on /echo goes back as it came.

    realtime serve examples/echo.py

Then `websocat ws://127.0.0.1:3002/echo`, or any other WebSocket client. Conformance suites run against it, too.
"""

from realtime import Realtime, Session

app = Realtime()


@app.raw("/echo", auth=False)
def echo(session: Session, message: str | bytes) -> None:
    session.send(message)


if __name__ == "__main__":
    app.run()
