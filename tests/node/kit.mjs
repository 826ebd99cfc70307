/**
 * A real server as a process and a client on Node's `ws`, for the tests of this folder and of tests/browser.
 *
 * The server is `.venv/bin/realtime serve` (or REALTIME_COMMAND) with ports, data directory and secret of its own; it
 * is ready when its ports take connections. What still runs when Node ends is killed.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const COMMAND = process.env.REALTIME_COMMAND ?? path.join(ROOT, ".venv/bin/realtime");
export const PATIENCE_MS = 15_000;
export const SECRET = "a-secret-of-the-tests-only-0123456789abcdef";

/** A token of `user`, signed with HMAC-SHA256 by Node's own crypto. */
export function mint(user, { ttlS = 3600, secret = SECRET, ...claims } = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + ttlS;
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: user, exp, ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

/** A port that nobody listens on. */
async function freePort() {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

async function answers(port) {
  const socket = net.connect(port, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/**
 * One `realtime serve` process of an `app` file, or of the built-in one; `generatedSecret` leaves the secret to the
 * server, which opens the playground.
 */
export class Server {
  #process = null;

  static async start({ app = null, sets = [], api = false, generatedSecret = false } = {}) {
    const server = new Server();
    server.folder = mkdtempSync(path.join(os.tmpdir(), "realtime-node-"));
    server.port = await freePort();
    server.apiPort = await freePort();
    server.api = api;
    server.playground = api && generatedSecret;
    const settings = api ? sets : ["api.enabled=false", ...sets];
    server.arguments = ["serve", ...(app ? [app] : []), ...settings.flatMap((set) => ["--set", set])];
    const kept = Object.entries(process.env).filter(([name]) => !/^(REALTIME_|WS_|API_)/.test(name));
    server.environment = {
      ...Object.fromEntries(kept),
      WS_PORT: String(server.port),
      API_PORT: String(server.apiPort),
      REALTIME_DATA_DIR: path.join(server.folder, "data"),
      ...(generatedSecret ? {} : { REALTIME_JWT_SECRET: SECRET }),
    };
    process.once("exit", () => {
      server.#process?.kill("SIGKILL");
      rmSync(server.folder, { recursive: true, force: true });
    });
    await server.resume();
    return server;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  get apiUrl() {
    return `http://127.0.0.1:${this.apiPort}`;
  }

  /** The newest link to the playground that the server printed; it works once, and each use prints the next. */
  get link() {
    return this.#links.at(-1)[1];
  }

  get #links() {
    return [...readFileSync(path.join(this.folder, "output.txt"), "utf8").matchAll(/Playground {2}(\S+)/g)];
  }

  /** Starts the process, again after `kill` with the same ports and data. */
  async resume() {
    const output = path.join(this.folder, "output.txt");
    const fd = openSync(output, "a");
    const printed = this.#links.length;
    this.#process = spawn(COMMAND, this.arguments, { cwd: this.folder, env: this.environment, stdio: ["ignore", fd, fd] });
    const ports = this.api ? [this.port, this.apiPort] : [this.port];
    const deadline = Date.now() + 60_000;
    for (const port of ports) {
      while (!(await answers(port))) {
        assert.equal(this.#process.exitCode, null, `the server ended:\n${readFileSync(output, "utf8")}`);
        assert.ok(Date.now() < deadline, `nothing answered on ${port}:\n${readFileSync(output, "utf8")}`);
        await sleep(20);
      }
    }
    // The ports are taken before the server has started.
    while (this.playground && this.#links.length === printed) {
      assert.ok(Date.now() < deadline, `no link to the playground:\n${readFileSync(output, "utf8")}`);
      await sleep(20);
    }
  }

  /** Ends the process as `kill -9` does. */
  async kill() {
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }

  /** Asks the process to end and returns its exit code. */
  async stop() {
    this.#process.kill("SIGTERM");
    const [code] = await once(this.#process, "exit");
    return code;
  }
}

/** A signed-in WebSocket; frames that an expectation passes over are kept for the next. */
export class Client {
  #waiting = null;
  inbox = [];
  closed = null;

  static async open(server, user, Socket, { protocols = [], token = mint(user), ...options } = {}) {
    const client = new Client();
    client.socket = new Socket(`${server.url}?token=${token}`, protocols, options);
    client.socket.addEventListener("message", ({ data }) => client.#arrived(JSON.parse(data)));
    client.closed = new Promise((resolve) => {
      client.socket.addEventListener("close", ({ code, reason }) => resolve({ code, reason }));
    });
    await client.expect("connection_established");
    return client;
  }

  #arrived(frame) {
    this.inbox.push(frame);
    this.#waiting?.();
  }

  send(type, data, id) {
    this.socket.send(JSON.stringify({ type, data, id }));
  }

  /** The first frame that `accepts`, within the time that tests have. */
  async take(accepts, what) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const index = this.inbox.findIndex(accepts);
      if (index >= 0) {
        return this.inbox.splice(index, 1)[0];
      }
      assert.ok(Date.now() < deadline, `${what} did not come; the last that came: ${JSON.stringify(this.inbox.slice(-5))}`);
      await Promise.race([new Promise((resolve) => { this.#waiting = resolve; }), sleep(200)]);
    }
  }

  expect(type, data = {}) {
    const holds = (frame) => Object.entries(data).every(([name, value]) => frame.data?.[name] === value);
    return this.take((frame) => frame.type === type && holds(frame), `${type} ${JSON.stringify(data)}`);
  }

  /** Sends a command with an id and returns its answer. */
  ask(type, data, id = `n${Math.random()}`) {
    this.send(type, data, id);
    return this.take((frame) => frame.id === id, `the answer to ${type}`);
  }
}
