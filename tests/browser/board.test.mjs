/** The README's board, as the page shows it: two tabs of a file, and the notes again after `kill -9` and a restart. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { mint, Server } from "../node/kit.mjs";
import { launch } from "./tab.mjs";

const README = readFileSync(fileURLToPath(new URL("../../README.md", import.meta.url)), "utf8");

let browser;
let server;
let folder;

/** The README's block that is saved as this file. */
function block(name) {
  const found = [...README.matchAll(/^```(?:python|html)\n((?:#|<!--) (\S+).*\n[^]*?)^```$/gm)].find((each) => each[2] === name);
  assert.ok(found, `the README has no block ${name}`);
  return found[1];
}

before(async () => {
  browser = await launch();
  folder = mkdtempSync(path.join(os.tmpdir(), "realtime-board-"));
  writeFileSync(path.join(folder, "board.py"), block("board.py"));
  server = await Server.start({ app: path.join(folder, "board.py") });
  writeFileSync(path.join(folder, "board.html"), block("board.html").replace("127.0.0.1:3002", `127.0.0.1:${server.port}`));
});

after(async () => {
  await browser?.close();
  await server?.kill();
  rmSync(folder, { recursive: true, force: true });
});

/** Opens the page as a file and answers its question with a token. */
async function open(user) {
  const page = await browser.newPage();
  page.on("dialog", (dialog) => dialog.accept(mint(user)));
  await page.goto(pathToFileURL(path.join(folder, "board.html")).href);
  await page.waitForFunction(() => socket.readyState === WebSocket.OPEN);
  return page;
}

const shows = (page, text) => page.waitForFunction((wanted) => document.querySelector("pre").textContent === wanted, text);

test("a note that is typed in one tab shows in both, and after the server was killed and restarted", async () => {
  const ann = await open("ann");
  const bob = await open("bob");
  await ann.fill("input", "buy milk");
  await ann.press("input", "Enter");
  await shows(ann, "ann: buy milk\n");
  await shows(bob, "ann: buy milk\n");
  await server.kill();
  await server.resume();
  await bob.reload();
  await shows(bob, "ann: buy milk\n");
});
