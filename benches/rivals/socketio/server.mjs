// Socket.IO on Node over WebSocket alone: rooms and `io.to(room).emit`. Commands are the event `command`, everything said is the
// event `event`; Engine.IO's and Socket.IO's packets stand around them. What it leaves out: ../protocol.mjs.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { carryOut, claimsOf, greeting, messageBytesMax, port } from "../protocol.mjs";

/** A socket as ../protocol.mjs sees it, made once a connection. */
class Peer {
  constructor(socket, userId) {
    this.socket = socket;
    this.userId = userId;
    this.sessionId = socket.id;
  }
  send(event) {
    this.socket.emit("event", event);
  }
  subscribe(channel) {
    this.socket.join(channel);
  }
  unsubscribe(channel) {
    this.socket.leave(channel);
  }
  publish(channel, event) {
    io.to(channel).emit("event", event);
  }
}

const server = createServer((_request, response) => response.writeHead(404).end("WebSocket endpoint not found"));
const io = new Server(server, {
  path: "/ws",
  addTrailingSlash: false,
  serveClient: false,
  transports: ["websocket"],
  perMessageDeflate: false,
  maxHttpBufferSize: messageBytesMax,
  connectTimeout: 60_000,
  allowRequest: (request, answer) => {
    const claims = claimsOf(new URL(request.url, "http://localhost").searchParams.get("token"));
    request.userId = claims?.sub;
    answer(null, claims !== null);
  },
});
io.on("connection", (socket) => {
  const peer = new Peer(socket, socket.request.userId);
  socket.on("command", (command) => carryOut(peer, command));
  peer.send(greeting(peer));
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
