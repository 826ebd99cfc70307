/** A tab on the playground page, driven as a person would: by what is on the screen. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const PATIENCE_MS = 20_000;
const PLACES = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** Starts the machine's browser without a window. */
export function launch() {
  const executablePath = PLACES.find((place) => place && existsSync(place));
  assert.ok(executablePath, "no Chromium on this machine: install it (apt-get install chromium) or set CHROMIUM to its path");
  return chromium.launch({ executablePath, headless: true, args: FLAGS });
}

export class Tab {
  problems = [];
  foreign = [];

  /** Opens a tab of its own profile, signs in and waits until it is connected. */
  static async open(browser, server, name, conversation, options = {}) {
    const tab = new Tab();
    tab.context = await browser.newContext(options);
    tab.page = await tab.context.newPage();
    tab.page.setDefaultTimeout(PATIENCE_MS);
    tab.page.on("pageerror", (error) => tab.problems.push(String(error)));
    tab.page.on("console", (line) => line.type() === "error" && tab.problems.push(line.text()));
    tab.page.on("request", (request) => {
      if (!/^(https?|wss?):\/\/(127\.0\.0\.1|localhost)[:/]/.test(request.url())) {
        tab.foreign.push(request.url());
      }
    });
    await tab.page.goto(server.link);
    await tab.page.waitForURL(`${server.apiUrl}/`);
    await tab.page.fill("#name", name);
    await tab.page.fill("#conversation", conversation);
    await tab.page.click("#join");
    await tab.sees("#state", "connected", { exactly: true });
    return tab;
  }

  async say(text) {
    await this.page.fill("#composer", text);
    await this.page.click("#send");
  }

  async types(text) {
    await this.page.locator("#composer").pressSequentially(text, { delay: 20 });
  }

  /** Waits until the text of an element holds `text` (or is it, `exactly`). */
  sees(selector, text, { exactly = false } = {}) {
    return this.#until(selector, text, exactly, true);
  }

  seesNot(selector, text, { exactly = false } = {}) {
    return this.#until(selector, text, exactly, false);
  }

  async #until(selector, text, exactly, expected) {
    const holds = ([where, wanted, whole, shown]) => {
      const found = document.querySelector(where)?.textContent.trim() ?? "";
      return (whole ? found === wanted : found.includes(wanted)) === shown;
    };
    try {
      await this.page.waitForFunction(holds, [selector, text, exactly, expected], { timeout: PATIENCE_MS });
    } catch (error) {
      const found = await this.page.locator(selector).textContent();
      const page = this.problems.join("; ");
      assert.fail(`${selector} should ${expected ? "" : "not "}show ${text}; it shows ${found}; ${page} (${error.message})`);
    }
  }

  /** How many messages hold `text`. */
  count(text) {
    return this.page.locator("#messages > li", { hasText: text }).count();
  }

  async reload() {
    await this.page.reload();
    await this.sees("#state", "connected", { exactly: true });
  }

  title() {
    return this.page.title();
  }

  close() {
    return this.context.close();
  }
}
