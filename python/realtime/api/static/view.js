/**
 * The room on the screen: messages, people, typing. Draws what a Conversation says and holds no state of its own but
 * the scroll position. Names and messages are other people's text, so they only ever become `textContent`.
 */

const GROUP_MS = 5 * 60_000;
const SHOWN_MAX = 500;

let sizes = null;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) {
    made.textContent = text;
  }
  return made;
}

/** A colour of the name's own, so that a person looks the same on every page. */
function hue(name) {
  let sum = 0;
  for (const character of name) {
    sum = (sum * 31 + character.codePointAt(0)) % 360;
  }
  return sum;
}

function avatar(name) {
  const made = element("span", "avatar", [...name.trim()].slice(0, 2).join("").toUpperCase());
  made.style.setProperty("--hue", hue(name));
  made.setAttribute("aria-hidden", "true");
  return made;
}

function person(name, own) {
  const item = element("li", "person");
  item.dataset.user = name;
  item.append(avatar(name), element("span", "who", name));
  if (own) {
    item.append(element("span", "you", "you"));
  }
  return item;
}

function opensGroup(message, before) {
  return before?.userId !== message.userId || new Date(message.createdAt) - new Date(before.createdAt) > GROUP_MS;
}

function row(message, first, user) {
  const own = message.userId === user;
  const at = new Date(message.createdAt);
  const item = element("li", `message${own ? " own" : ""}${first ? " first" : ""}`);
  if (message.state) {
    item.classList.add(message.state);
  }
  if (message.offset !== undefined) {
    item.dataset.offset = message.offset;
  }
  item.dataset.user = message.userId;

  const head = element("div", "head");
  const time = element("time", "", clock.format(at));
  time.dateTime = message.createdAt;
  time.title = full.format(at);
  head.append(element("b", "author", own ? "You" : message.userId), time);

  const sent = { pending: "sending…", failed: `not sent: ${message.failure}` }[message.state] ?? "";
  const body = element("div", "body");
  body.append(head, element("div", "text", message.content), element("div", "mark-sent", sent));
  item.append(avatar(message.userId), body);
  return item;
}

/** Make the children of `list` those of `wanted` ([key, make] each), touching no others: changes are read aloud. */
function reconcile(list, wanted) {
  const keys = new Set(wanted.map(([key]) => key));
  const kept = new Map();
  for (const child of [...list.children]) {
    if (keys.has(child.dataset.key)) {
      kept.set(child.dataset.key, child);
    } else {
      child.remove();
    }
  }
  let next = list.firstElementChild;
  for (const [key, make] of wanted) {
    const item = kept.get(key) ?? make();
    item.dataset.key = key;
    if (item === next) {
      next = next.nextElementSibling;
    } else {
      list.insertBefore(item, next);
    }
  }
}

function typists(names) {
  if (names.length === 0) {
    return "";
  }
  if (names.length > 3) {
    return `${names.length} people are typing…`;
  }
  const last = names.at(-1);
  return names.length === 1 ? `${last} is typing…` : `${names.slice(0, -1).join(", ")} and ${last} are typing…`;
}

/** Draw `conversation` into the page whenever it changes; at most once a frame for the messages. */
export function show(conversation) {
  const messages = document.getElementById("messages");
  const people = document.getElementById("people");
  const notice = document.getElementById("notice");
  let asked = false;
  // Whether the reader is at the end and wants to stay there, also when the list itself becomes smaller.
  let following = true;
  messages.onscroll = () => {
    following = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
  };
  sizes?.disconnect();
  sizes = new ResizeObserver(() => {
    if (following) {
      messages.scrollTop = messages.scrollHeight;
    }
  });
  sizes.observe(messages);

  const draw = () => {
    asked = false;
    const all = conversation.messages.slice(-SHOWN_MAX);
    reconcile(
      messages,
      all.map((message, index) => {
        const first = opensGroup(message, all[index - 1]);
        const key = `${message.offset ?? message.clientMessageId} ${message.state ?? "said"} ${first}`;
        return [key, () => row(message, first, conversation.user)];
      }),
    );
    document.getElementById("empty").hidden = all.length > 0;
    if (following || all.at(-1)?.state === "pending") {
      messages.scrollTop = messages.scrollHeight;
    }
  };
  const ask = () => {
    if (!asked) {
      asked = true;
      // A timer, not an animation frame: those stand still in a tab behind another one.
      setTimeout(draw, 0);
    }
  };

  const drawTyping = () => {
    document.getElementById("typing").textContent = typists([...conversation.typing].sort());
  };
  const drawPeople = () => {
    const names = [...conversation.people].sort((a, b) => a.localeCompare(b));
    reconcile(
      people,
      names.map((name) => [`${name} ${name === conversation.user}`, () => person(name, name === conversation.user)]),
    );
    document.getElementById("people-count").textContent = names.length;
  };

  conversation.addEventListener("messages", ask);
  conversation.addEventListener("typing", drawTyping);
  conversation.addEventListener("people", drawPeople);
  conversation.addEventListener("notice", ({ detail }) => {
    notice.textContent = detail.text;
    notice.hidden = !detail.text;
  });

  document.getElementById("title").textContent = conversation.id;
  document.getElementById("me").textContent = conversation.user;
  notice.hidden = true;
  messages.replaceChildren();
  draw();
  drawTyping();
  drawPeople();
}
