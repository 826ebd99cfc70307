/** The wire protocol with Node's `ws`, a client of another make than Python's: with one shard and with two. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { Client, mint, Server } from "./kit.mjs";

for (const shards of [1, 2]) {
  describe(`with ${shards} shard(s)`, () => {
    let server;
    before(async () => {
      server = await Server.start({ sets: [`server.shards=${shards}`, "presence.grace_s=0.3"] });
    });
    after(() => server.kill());
    const open = (user, options) => Client.open(server, user, WebSocket, options);

    test("two people hold a conversation", async () => {
      const [ada, bob] = [await open("ada"), await open("bob")];
      for (const client of [ada, bob]) {
        assert.equal((await client.ask("subscribe", { channel: "conversation:1" })).type, "subscription_confirmed");
      }
      const ack = await ada.ask("send_message", { conversationId: "1", content: "hello ☕", clientMessageId: "m1" });
      assert.equal(ack.type, "ack");
      assert.equal(ack.data.number, 1);
      const message = await bob.expect("new_message", { content: "hello ☕" });
      assert.deepEqual(message.data, ack.data);
      assert.equal(message.offset, 1);
      ada.send("typing_start", { conversationId: "1" });
      await bob.expect("typing_indicator", { userId: "ada", isTyping: true });
      ada.socket.close(1000);
      await bob.expect("typing_indicator", { userId: "ada", isTyping: false });
      await bob.expect("user_presence", { userId: "ada", status: "offline" });
      bob.socket.close();
    });

    test("a subscriber with its position gets exactly what it missed", async () => {
      const ada = await open("ada");
      const { data } = await ada.ask("subscribe", { channel: "conversation:2" });
      for (let n = 1; n <= 5; n += 1) {
        await ada.ask("send_message", { conversationId: "2", content: String(n) });
      }
      const bob = await open("bob");
      const position = { offset: 2, epoch: data.position.epoch };
      const confirmed = await bob.ask("subscribe", { channel: "conversation:2", position });
      assert.deepEqual([confirmed.data.recovered, confirmed.data.replayed, confirmed.data.head], [true, 3, 5]);
      assert.deepEqual(confirmed.data.position, position);
      for (const content of ["3", "4", "5"]) {
        assert.equal((await bob.expect("new_message")).data.content, content);
      }
      ada.socket.close();
      bob.socket.close();
    });

    test("pings are answered while a message is in fragments", async () => {
      const ada = await open("ada");
      const pong = new Promise((resolve) => ada.socket.once("pong", (payload) => resolve(String(payload))));
      ada.socket.send('{"type":', { fin: false });
      ada.socket.ping("between");
      assert.equal(await pong, "between");
      ada.socket.send('"ping"}', { fin: true });
      await ada.expect("pong");
      ada.socket.close();
    });

    test("an offer of permessage-deflate is taken and long messages go through both ways", async () => {
      const ada = await open("ada", { perMessageDeflate: { threshold: 0 } });
      assert.equal(ada.socket.extensions, "permessage-deflate");
      assert.equal((await ada.ask("ping")).type, "pong");
      await ada.ask("subscribe", { channel: "conversation:deflated" });
      const content = "again and ".repeat(500);
      await ada.ask("send_message", { conversationId: "deflated", content });
      assert.equal((await ada.expect("new_message")).data.content, content);
      ada.socket.close();
    });

    test("realtime.v1 tells a bad token by a close code and others by a status", async () => {
      const v1 = new WebSocket(`${server.url}?token=bad`, ["realtime.v1"]);
      const code = await new Promise((resolve) => v1.once("close", resolve));
      assert.equal(code, 4501);
      const first = new WebSocket(`${server.url}?token=bad`);
      const status = await new Promise((resolve) => {
        first.once("unexpected-response", (request, response) => resolve(response.statusCode));
      });
      assert.equal(status, 401);
      first.on("error", () => {});
      first.terminate();
    });

    test("the token goes in the subprotocol too", async () => {
      const socket = new WebSocket(server.url, ["realtime.v1", `bearer.${mint("ada")}`]);
      const frame = await new Promise((resolve) => socket.once("message", (text) => resolve(JSON.parse(text))));
      assert.equal(socket.protocol, "realtime.v1");
      assert.equal(frame.data.userId, "ada");
      socket.close();
    });

    test("a close is answered with its own code", async () => {
      const ada = await open("ada");
      ada.socket.close(3456, "bye");
      assert.equal((await ada.closed).code, 3456);
    });
  });
}

test("an orderly end closes with 1012 and exits with 0", async () => {
  const server = await Server.start();
  const ada = await Client.open(server, "ada", WebSocket);
  assert.equal(await server.stop(), 0);
  assert.equal((await ada.closed).code, 1012);
});
