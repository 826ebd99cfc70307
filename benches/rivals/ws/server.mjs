// ws on Node: the members of a channel are a Set, and a publication is one `send` a member, as its documentation shows it.
import { createServer } from "node:http";
import { randomUUID } from "node:crypto";
import { WebSocketServer } from "ws";
import { claimsOf, compressed, greeting, handle, messageBytesMax, port } from "../protocol.mjs";

const channels = new Map();

/** A socket as ../protocol.mjs sees it, made once a connection. */
class Peer {
  constructor(socket, userId) {
    this.socket = socket;
    this.userId = userId;
    this.sessionId = randomUUID();
    this.subscriptions = new Set();
  }
  send(event) {
    this.socket.send(JSON.stringify(event));
  }
  subscribe(channel) {
    if (!channels.has(channel)) channels.set(channel, new Set());
    channels.get(channel).add(this.socket);
    this.subscriptions.add(channel);
  }
  unsubscribe(channel) {
    channels.get(channel)?.delete(this.socket);
    this.subscriptions.delete(channel);
  }
  publish(channel, event) {
    // The bytes are made once: a string would be encoded again for every member.
    const bytes = Buffer.from(JSON.stringify(event));
    for (const member of channels.get(channel) ?? []) member.send(bytes, { binary: false });
  }
}

const server = createServer((_request, response) => response.writeHead(404).end("WebSocket endpoint not found"));
const sockets = new WebSocketServer({
  noServer: true,
  maxPayload: messageBytesMax,
  // Its own threshold of 1,024 bytes would leave the events of W5 as they are.
  perMessageDeflate: compressed ? { threshold: 256 } : false,
});
server.on("upgrade", (request, socket, head) => {
  const url = new URL(request.url, "http://localhost");
  const claims = url.pathname === "/ws" ? claimsOf(url.searchParams.get("token")) : null;
  if (!claims) {
    const [status, body] = url.pathname === "/ws" ? ["401 Unauthorized", "Unauthorized"] : ["404 Not Found", "WebSocket endpoint not found"];
    socket.end(`HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`);
    return;
  }
  sockets.handleUpgrade(request, socket, head, (ws) => {
    const peer = new Peer(ws, claims.sub);
    ws.on("message", (bytes) => handle(peer, bytes.toString()));
    ws.on("close", () => [...peer.subscriptions].forEach((channel) => peer.unsubscribe(channel)));
    ws.on("error", () => {}); // the close that follows it does the rest
    peer.send(greeting(peer));
  });
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
