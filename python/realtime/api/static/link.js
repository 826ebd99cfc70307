/**
 * One WebSocket that comes back by itself: connects, matches replies to commands by `id`, and after a lost connection
 * tries again after 1, 2, 4, 8 and then every 16 s, or at once when the network or the tab returns. Where the server
 * said `draining`, the first attempt comes when it asked for.
 *
 * Events: `state` {state, text}, `open` (after connection_established), `event` {event}, `frame` {way, text}.
 * States: idle, connecting, connected, waiting, refused. It knows nothing of conversations.
 */

const BACKOFF_S = [1, 2, 4, 8, 16];
const REPLY_TIMEOUT_MS = 10_000;
const OPEN_TIMEOUT_MS = 10_000;

/** A command that was answered by `error`, or by nothing before the connection ended. */
export class CommandFailed extends Error {
  constructor(message, code, retryable) {
    super(message);
    this.code = code;
    this.retryable = retryable;
  }
}

export class Link extends EventTarget {
  #address;
  #token;
  #socket = null;
  #pending = new Map();
  #ids = 0;
  #attempt = 0;
  #comeBackMs = null;
  #timer = null;
  #wanted = false;

  /**
   * @param {() => Promise<string>} address gives the URL of the WebSocket endpoint, asked before each attempt
   * @param {() => Promise<string>} token gives a fresh token, asked before each attempt
   */
  constructor(address, token) {
    super();
    this.#address = address;
    this.#token = token;
    window.addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  get connected() {
    return this.#socket?.established === true;
  }

  open() {
    this.#wanted = true;
    this.#attempt = 0;
    this.#connect();
  }

  close() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#socket?.close(1000, "left");
    this.#socket = null;
    this.#abandon();
    this.#say("idle", "not connected");
  }

  /** Send a command and wait for what answers it; rejects with CommandFailed. */
  ask(type, data) {
    const socket = this.#socket;
    if (!this.connected) {
      return Promise.reject(new CommandFailed("not connected", "unavailable", true));
    }
    const id = ++this.#ids;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new CommandFailed("no answer in time", "timeout", true));
      }, REPLY_TIMEOUT_MS);
      this.#pending.set(id, { resolve, reject, timer });
      this.#transmit(socket, { type, data, id });
    });
  }

  /** Send a command that nobody waits for; lost without a connection. */
  tell(type, data) {
    if (this.connected) {
      this.#transmit(this.#socket, { type, data });
    }
  }

  #transmit(socket, command) {
    const text = JSON.stringify(command);
    this.#emit("frame", { way: "out", text });
    socket.send(text);
  }

  async #connect() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#socket || !this.#wanted) {
      return;
    }
    this.#say("connecting", "connecting…");
    // Stands for the attempt until there is a socket: no second attempt starts beside it, and close() can end it.
    const attempt = { close: () => {} };
    this.#socket = attempt;
    let socket;
    try {
      const [address, token] = await Promise.all([this.#address(), this.#token()]);
      if (this.#socket !== attempt) {
        return;
      }
      socket = new WebSocket(address, ["realtime.v1", `bearer.${token}`]);
    } catch (error) {
      if (this.#socket === attempt) {
        this.#socket = null;
        this.#refusedOrRetry(error.final === true, error.message);
      }
      return;
    }
    this.#socket = socket;
    const patience = setTimeout(() => socket.close(), OPEN_TIMEOUT_MS);
    socket.onmessage = (message) => {
      clearTimeout(patience);
      if (this.#socket === socket) {
        this.#receive(socket, message.data);
      }
    };
    socket.onclose = (closed) => {
      clearTimeout(patience);
      const words = `closed ${closed.code}${closed.reason ? ` ${closed.reason}` : ""}`;
      this.#emit("frame", { way: "note", text: words });
      if (this.#socket === socket) {
        this.#socket = null;
        this.#abandon();
        this.#refusedOrRetry(closed.code >= 4500, words);
      }
    };
  }

  #receive(socket, text) {
    this.#emit("frame", { way: "in", text });
    const event = JSON.parse(text);
    if (event.type === "draining") {
      this.#comeBackMs = Date.now() + event.data.reconnectInMs;
    }
    if (event.type === "connection_established") {
      socket.established = true;
      this.#attempt = 0;
      this.#comeBackMs = null;
      this.#say("connected", "connected");
      this.#emit("open", { event });
      return;
    }
    const waiting = event.id === undefined ? undefined : this.#pending.get(event.id);
    if (waiting) {
      this.#pending.delete(event.id);
      clearTimeout(waiting.timer);
      if (event.type === "error") {
        waiting.reject(new CommandFailed(event.data.message, event.data.code, event.data.retryable));
        return;
      }
      waiting.resolve(event);
    }
    this.#emit("event", { event });
  }

  #abandon() {
    for (const waiting of this.#pending.values()) {
      clearTimeout(waiting.timer);
      waiting.reject(new CommandFailed("the connection was lost", "unavailable", true));
    }
    this.#pending.clear();
  }

  #refusedOrRetry(final, reason) {
    if (final) {
      this.#wanted = false;
      this.#say("refused", reason);
      return;
    }
    const backoffMs = BACKOFF_S[Math.min(this.#attempt, BACKOFF_S.length - 1)] * 1000;
    const delayMs = this.#comeBackMs === null ? backoffMs : Math.max(0, this.#comeBackMs - Date.now());
    this.#comeBackMs = null;
    this.#attempt += 1;
    this.#emit("frame", { way: "note", text: `${reason}; again in ${(delayMs / 1000).toFixed(1)} s` });
    this.#count(Date.now() + delayMs);
  }

  #count(dueMs) {
    const leftMs = dueMs - Date.now();
    if (leftMs <= 0) {
      this.#connect();
      return;
    }
    this.#say("waiting", `reconnecting in ${Math.ceil(leftMs / 1000)} s`);
    this.#timer = setTimeout(() => this.#count(dueMs), Math.min(leftMs, 250));
  }

  #hurry() {
    if (this.#timer !== null) {
      this.#connect();
    }
  }

  #say(state, text) {
    this.#emit("state", { state, text });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
