/**
 * The playground page in headless Chromium: two tabs hold a conversation, see each other online and typing, and see
 * everything again after the server was killed and started again. The browser is the machine's own (`chromium`, or
 * CHROMIUM=path); where there is none the test fails, since a browser's WebSocket is a client like no other.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { Server } from "../node/kit.mjs";
import { launch, Tab } from "./tab.mjs";

const SERVICE_KEY = "a-service-key-of-the-browser-tests-0123456789";

for (const shards of [1, 2]) {
  describe(`playground with ${shards} shard(s)`, () => {
    let browser;
    let server;
    before(async () => {
      browser = await launch();
      const sets = [`server.shards=${shards}`, "presence.grace_s=1", `auth.service_keys=${SERVICE_KEY}`];
      server = await Server.start({ api: true, generatedSecret: true, sets });
    });
    after(async () => {
      await browser?.close();
      await server?.kill();
    });

    test("two tabs chat, see each other online and typing, and what was said before", async () => {
      const ada = await Tab.open(browser, server, "ada", "kitchen");
      const bob = await Tab.open(browser, server, "bob", "kitchen");
      await ada.sees("#people", "bob");
      await bob.sees("#people", "ada");
      await ada.say("is there coffee?");
      await bob.sees("#messages", "is there coffee?");
      await ada.sees("#messages", "is there coffee?");
      await bob.types("there i");
      await ada.sees("#typing", "bob");
      await bob.say("there is tea");
      await ada.sees("#messages", "there is tea");
      await ada.seesNot("#typing", "bob");
      const late = await Tab.open(browser, server, "cyd", "kitchen");
      await late.sees("#messages", "is there coffee?");
      await late.sees("#messages", "there is tea");
      await late.close();
      await ada.seesNot("#people", "cyd");
      await ada.close();
      await bob.close();
    });

    test("a conversation survives kill -9 and a restart, in open tabs and after a reload", async () => {
      const ada = await Tab.open(browser, server, "ada", "cellar");
      const bob = await Tab.open(browser, server, "bob", "cellar");
      await ada.say("before the fall");
      await bob.sees("#messages", "before the fall");
      await server.kill();
      await ada.seesNot("#state", "connected", { exactly: true });
      await server.resume();
      await ada.sees("#state", "connected", { exactly: true });
      await bob.sees("#state", "connected", { exactly: true });
      await bob.say("after the rise");
      await ada.sees("#messages", "after the rise");
      for (const tab of [ada, bob]) {
        assert.equal(await tab.count("before the fall"), 1);
        assert.equal(await tab.count("after the rise"), 1);
      }
      await ada.reload();
      await ada.sees("#messages", "before the fall");
      await ada.sees("#messages", "after the rise");
      assert.equal(await ada.count("before the fall"), 1);
      await ada.close();
      await bob.close();
    });

    test("text of others is shown as text", async () => {
      const ada = await Tab.open(browser, server, "<b>ada</b>", "attic");
      const bob = await Tab.open(browser, server, "bob", "attic");
      await ada.say("<img src=x onerror=document.title='owned'>");
      await bob.sees("#messages", "<img src=x");
      await bob.sees("#people", "<b>ada</b>");
      assert.notEqual(await bob.title(), "owned");
      await ada.close();
      await bob.close();
    });

    test("what other systems published with less than a message has is shown", async () => {
      const ada = await Tab.open(browser, server, "ada", "porch");
      const publish = async (events) => {
        const headers = { Authorization: `Bearer ${SERVICE_KEY}`, "Content-Type": "application/json" };
        const answer = await fetch(`${server.apiUrl}/api/events`, { method: "POST", headers, body: JSON.stringify(events) });
        assert.equal(answer.status, 200);
      };
      await publish([
        { type: "new_message", conversationId: "porch", data: { content: "done" } },
        { type: "new_message", conversationId: "porch", data: { userId: 7, text: "of an API", createdAt: "now" } },
        { type: "typing_indicator", conversationId: "porch", data: [] },
        { type: "user_presence", all: true, data: 0 },
        { type: "user_presence", all: true, data: {} },
      ]);
      await ada.say("and now me");
      for (const look of ["live", "after a reload"]) {
        for (const text of ["done", "of an API", "and now me"]) {
          await ada.sees("#messages", text);
          assert.equal(await ada.count(text), 1, look);
        }
        await ada.reload();
      }
      assert.deepEqual(ada.problems, []);
      await ada.close();
    });

    test("the page asks nothing of any other machine and reports no error", async () => {
      const ada = await Tab.open(browser, server, "ada", "hall");
      await ada.say("hello");
      await ada.sees("#messages", "hello");
      assert.deepEqual(ada.problems, []);
      assert.deepEqual(ada.foreign, []);
      await ada.close();
    });
  });
}

test("a message that an existing API stores in its own way is shown once, as its sender's", async () => {
  const api = createServer((_, answer) => {
    answer.writeHead(201, { "Content-Type": "application/json" });
    answer.end(JSON.stringify({ id: "m1", author: 7, content: "stored elsewhere" }));
  });
  await new Promise((ready) => api.listen(0, "127.0.0.1", ready));
  const browser = await launch();
  const sets = [`api.url=http://127.0.0.1:${api.address().port}`];
  const server = await Server.start({ api: true, generatedSecret: true, sets });
  try {
    const ada = await Tab.open(browser, server, "ada", "shed");
    await ada.say("stored elsewhere");
    await ada.sees("#messages", "You");
    await ada.seesNot("#messages", "sending");
    assert.equal(await ada.count("stored elsewhere"), 1);
    assert.deepEqual(ada.problems, []);
  } finally {
    await browser.close();
    await server.kill();
    api.close();
  }
});

test("the picture in the README exists", () => {
  assert.ok(existsSync(new URL("../../docs/images/playground.png", import.meta.url)), "run: make picture");
});
