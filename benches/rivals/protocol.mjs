// What the rivals of Node's world share: the token check and the frames of the protocol, the same bytes a delivery as ours.
//
// It stores nothing, checks no grants and limits nothing: what a rival leaves out only makes it quicker, so a ratio measured
// against it is never in our favour. WS_PORT and REALTIME_JWT_SECRET as for ours; BENCH_COMPRESSION=1 asks for permessage-deflate.
import { createHmac, timingSafeEqual } from "node:crypto";

const secret = process.env.REALTIME_JWT_SECRET;
if (!secret) throw new Error("REALTIME_JWT_SECRET is not set: give it the secret that signed the tokens");

export const port = Number(process.env.WS_PORT ?? 3002);
export const compressed = process.env.BENCH_COMPRESSION === "1";
export const messageBytesMax = 16 * 1024 * 1024;

/** The claims of a valid HS256 token with `sub` and an `exp` in the future, else null. */
export function claimsOf(token) {
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

/** The first frame of a connection. */
export function greeting({ sessionId, userId }) {
  const data = { sessionId, timestamp: now(), protocol: 1, userId };
  return { type: "connection_established", data, timestamp: now() };
}

const refused = (message, code, id) =>
  ({ type: "error", data: { message, code, retryable: false }, timestamp: now(), id });

/** Carry out the command in `text`. */
export function handle(peer, text) {
  let command;
  try {
    command = JSON.parse(text);
  } catch {
    return peer.send(refused("Invalid message format", "invalid_message"));
  }
  carryOut(peer, command);
}

/**
 * Carry out one command. `peer` has `userId`, `send(event)`, `subscribe(channel)`, `unsubscribe(channel)` and
 * `publish(channel, event)`; events are objects.
 */
export function carryOut(peer, command) {
  const run = commands[command?.type];
  if (run) run(peer, command.data ?? {}, command.id);
  else peer.send(refused(`Unknown message type: ${command?.type}`, "unknown_type", command?.id));
}

const commands = {
  subscribe(peer, { channel }, id) {
    peer.subscribe(channel);
    peer.send({ type: "subscription_confirmed", data: { channel }, timestamp: now(), channel, id });
  },
  unsubscribe(peer, { channel }, id) {
    peer.unsubscribe(channel);
    peer.send({ type: "unsubscription_confirmed", data: { channel }, timestamp: now(), channel, id });
  },
  publish(peer, { channel, event, data }) {
    const conversationId = channel.startsWith("conversation:") ? channel.slice("conversation:".length) : undefined;
    const { userId } = peer;
    peer.publish(channel, { type: event, data, timestamp: now(), conversationId, userId, channel });
  },
  ping(peer, _data, id) {
    peer.send({ type: "pong", data: { timestamp: now() }, timestamp: now(), id });
  },
};
