/** Takes the picture of the playground that the README shows: `make picture`. */
import { mkdirSync } from "node:fs";
import path from "node:path";
import { Server } from "../node/kit.mjs";
import { launch, Tab } from "./tab.mjs";

const target = path.resolve(process.argv[2]);
mkdirSync(path.dirname(target), { recursive: true });
const browser = await launch();
const server = await Server.start({ api: true, generatedSecret: true });
const look = { viewport: { width: 1120, height: 680 }, deviceScaleFactor: 2, colorScheme: "dark" };
const ada = await Tab.open(browser, server, "ada", "lobby", look);
const bob = await Tab.open(browser, server, "bob", "lobby");
const cyd = await Tab.open(browser, server, "cyd", "lobby");
const lines = [
  [ada, "Morning! Did the restart last night lose anything?"],
  [bob, "Nothing. My tab came back by itself and fetched the three messages it had missed."],
  [cyd, "Same here, and in the order they were said."],
  [ada, "Then let us ship it."],
];
for (const [tab, text] of lines) {
  await tab.say(text);
  await ada.sees("#messages", text);
}
await bob.types("On it");
await ada.sees("#typing", "bob");
await ada.page.screenshot({ path: target });
await browser.close();
await server.kill();
console.log(`${target} written`);
process.exit(0);
