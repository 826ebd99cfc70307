/**
 * The playground: sign in with a name, open a conversation, leave it again. The name and the conversation stand in the
 * URL's hash, so a reload comes back to the same place and two tabs of one browser can be two people; the last ones
 * used are remembered as a proposal for the next tab.
 */

import { Conversation } from "./conversation.js";
import { inspect } from "./frames.js";
import { Link } from "./link.js";
import { show } from "./view.js";

const REMEMBERED = "realtime-playground";

const page = Object.fromEntries(
  [
    "welcome", "sign-in", "sign-in-error", "name", "conversation", "room", "leave", "state", "announcer", "compose",
    "composer",
  ].map((id) => [id, document.getElementById(id)]),
);
let current = null;
let user = "";

async function call(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.detail ?? `the server answered ${response.status}`);
    // What the page asks for is wrong, so asking again does not help; anything else may pass.
    error.final = response.status >= 400 && response.status < 500;
    throw error;
  }
  return body;
}

const address = async () => (await call("api/dev/config")).url;
const roster = async () => (await call("api/dev/people")).users;

async function token() {
  const headers = { "content-type": "application/json" };
  return (await call("api/dev/token", { method: "POST", headers, body: JSON.stringify({ user }) })).token;
}

const link = new Link(address, token);
inspect(link);
link.addEventListener("state", ({ detail }) => {
  if (detail.state !== page.state.dataset.state) {
    // Once for each state, and not for each second of a countdown.
    page.announcer.textContent = detail.text;
  }
  page.state.dataset.state = detail.state;
  page.state.textContent = detail.text;
});

function open(name, id) {
  close();
  user = name;
  current = new Conversation(link, name, id, roster);
  show(current);
  page.welcome.hidden = true;
  page.room.hidden = false;
  document.title = `${name} in ${id} · Realtime playground`;
  link.open();
  page.composer.focus();
}

function close() {
  if (current) {
    current.leave();
    current = null;
    link.close();
  }
  page.room.hidden = true;
  page.welcome.hidden = false;
  document.title = "Realtime playground";
}

function fromHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const [name, id] = [wanted.get("name")?.trim(), wanted.get("conversation")?.trim()];
  if (name === current?.user && id === current?.id) {
    return;
  }
  if (name && id) {
    page.name.value = name;
    page.conversation.value = id;
    if (page["sign-in"].checkValidity()) {
      open(name, id);
    }
  } else {
    close();
    page.name.focus();
  }
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
  } catch {
    return {};
  }
}

page["sign-in"].addEventListener("submit", (event) => {
  event.preventDefault();
  const name = page.name.value.trim();
  const conversation = page.conversation.value.trim();
  page["sign-in-error"].hidden = name !== "";
  page["sign-in-error"].textContent = name ? "" : "A name is needed.";
  if (!name) {
    return;
  }
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify({ name, conversation }));
  } catch {
    // A browser that stores nothing only loses the proposal.
  }
  location.hash = new URLSearchParams({ name, conversation }).toString();
  fromHash();
});

page.leave.addEventListener("click", () => {
  location.hash = "";
  fromHash();
});

page.compose.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = page.composer.value.trim();
  if (content && current) {
    page.composer.value = "";
    current.send(content);
  }
  page.composer.focus();
});

page.composer.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    page.compose.requestSubmit();
  }
});

page.composer.addEventListener("input", () => {
  if (page.composer.value.trim()) {
    current?.startTyping();
  } else {
    current?.stopTyping();
  }
});
page.composer.addEventListener("blur", () => current?.stopTyping());

window.addEventListener("hashchange", fromHash);
const proposal = remembered();
page.name.value = proposal.name ?? "";
page.conversation.value = proposal.conversation ?? "lobby";
fromHash();
