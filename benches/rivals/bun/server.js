// The smallest honest server of the same protocol on Bun: native topics (`ws.subscribe`, `server.publish`), an HS256
// token checked on every connect, JSON parsed and written once per message, the same bytes per delivery as ours.
//
// It stores nothing, checks no grants and limits nothing: what it leaves out only makes it quicker, so a ratio
// measured against it is never in our favour. Called by ../../run.py; WS_PORT and REALTIME_JWT_SECRET as for ours.
import { createHmac, timingSafeEqual } from "node:crypto";

const secret = process.env.REALTIME_JWT_SECRET;
if (!secret) throw new Error("REALTIME_JWT_SECRET is not set: give it the secret that signed the tokens");

/** The claims of a valid HS256 token with `sub` and an `exp` in the future, else null. */
function claimsOf(token) {
  const parts = token?.split(".");
  if (parts?.length !== 3) return null;
  const [header, payload, signature] = parts;
  const expected = createHmac("sha256", secret).update(`${header}.${payload}`).digest();
  const given = Buffer.from(signature, "base64url");
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return null;
  try {
    if (JSON.parse(Buffer.from(header, "base64url")).alg !== "HS256") return null;
    const claims = JSON.parse(Buffer.from(payload, "base64url"));
    return typeof claims.sub === "string" && claims.exp > Date.now() / 1000 ? claims : null;
  } catch {
    return null;
  }
}

const now = () => new Date().toISOString();
const refused = (message, code, id) =>
  JSON.stringify({ type: "error", data: { message, code, retryable: false }, timestamp: now(), id });

const commands = {
  subscribe(ws, { channel }, id) {
    ws.subscribe(channel);
    ws.send(JSON.stringify({ type: "subscription_confirmed", data: { channel }, timestamp: now(), channel, id }));
  },
  unsubscribe(ws, { channel }, id) {
    ws.unsubscribe(channel);
    ws.send(JSON.stringify({ type: "unsubscription_confirmed", data: { channel }, timestamp: now(), channel, id }));
  },
  publish(ws, { channel, event, data }) {
    const conversationId = channel.startsWith("conversation:") ? channel.slice("conversation:".length) : undefined;
    const { userId } = ws.data;
    server.publish(channel, JSON.stringify({ type: event, data, timestamp: now(), conversationId, userId, channel }));
  },
  ping(ws, _data, id) {
    ws.send(JSON.stringify({ type: "pong", data: { timestamp: now() }, timestamp: now(), id }));
  },
};

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.WS_PORT ?? 3002),
  fetch(request, server) {
    const url = new URL(request.url);
    if (url.pathname !== "/ws") return new Response("WebSocket endpoint not found", { status: 404 });
    const claims = claimsOf(url.searchParams.get("token"));
    if (!claims) return new Response("Unauthorized", { status: 401 });
    const session = { sessionId: crypto.randomUUID(), userId: claims.sub };
    if (!server.upgrade(request, { data: session })) return new Response("Upgrade failed", { status: 400 });
  },
  websocket: {
    idleTimeout: 300,
    maxPayloadLength: 16 * 1024 * 1024,
    perMessageDeflate: false, // the generator does not offer it
    open(ws) {
      const { sessionId, userId } = ws.data;
      const data = { sessionId, timestamp: now(), protocol: 1, userId };
      ws.send(JSON.stringify({ type: "connection_established", data, timestamp: now() }));
    },
    message(ws, text) {
      let command;
      try {
        command = JSON.parse(text);
      } catch {
        return void ws.send(refused("Invalid message format", "invalid_message"));
      }
      const handle = commands[command?.type];
      if (handle) handle(ws, command.data ?? {}, command.id);
      else ws.send(refused(`Unknown message type: ${command?.type}`, "unknown_type", command?.id));
    },
  },
});
