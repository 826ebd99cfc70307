// Bun with its native topics: `ws.subscribe`, `server.publish`. What it leaves out: ../protocol.mjs.
import { claimsOf, compressed, greeting, handle, messageBytesMax, port } from "../protocol.mjs";

/** A socket as ../protocol.mjs sees it, made once a connection. */
class Peer {
  constructor(userId) {
    this.sessionId = crypto.randomUUID();
    this.userId = userId;
    this.socket = null;
  }
  send(event) {
    this.socket.send(JSON.stringify(event), compressed);
  }
  subscribe(channel) {
    this.socket.subscribe(channel);
  }
  unsubscribe(channel) {
    this.socket.unsubscribe(channel);
  }
  publish(channel, event) {
    server.publish(channel, JSON.stringify(event), compressed);
  }
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port,
  fetch(request, server) {
    const url = new URL(request.url);
    if (url.pathname !== "/ws") return new Response("WebSocket endpoint not found", { status: 404 });
    const claims = claimsOf(url.searchParams.get("token"));
    if (!claims) return new Response("Unauthorized", { status: 401 });
    if (!server.upgrade(request, { data: new Peer(claims.sub) })) return new Response("Upgrade failed", { status: 400 });
  },
  websocket: {
    idleTimeout: 300,
    maxPayloadLength: messageBytesMax,
    perMessageDeflate: compressed,
    open(ws) {
      ws.data.socket = ws;
      ws.data.send(greeting(ws.data));
    },
    message(ws, text) {
      handle(ws.data, text);
    },
  },
});
