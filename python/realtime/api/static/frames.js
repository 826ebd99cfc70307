/**
 * The inspector: the last raw frames of a Link, both ways, as they were on the wire. Frames are kept as text and only
 * drawn while the inspector is open, so that a busy page pays nothing for a closed one.
 */

const FRAMES_MAX = 300;
const SHOWN_MAX = 4_000;
const ARROWS = { in: "↓", out: "↑", note: "•" };
const WORDS = { in: "received", out: "sent", note: "note" };

function drawn({ way, text, at }) {
  const item = document.createElement("li");
  item.className = way;
  const time = document.createElement("time");
  time.textContent = at.toISOString().slice(11, 23);
  const arrow = document.createElement("span");
  arrow.className = "way";
  arrow.textContent = ARROWS[way];
  arrow.title = WORDS[way];
  const code = document.createElement("code");
  code.textContent = text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}… (${text.length} characters)` : text;
  item.append(time, arrow, code);
  return item;
}

export function inspect(link) {
  const inspector = document.getElementById("inspector");
  const list = document.getElementById("frames");
  const count = document.getElementById("frame-count");
  const pause = document.getElementById("inspector-pause");
  let frames = [];
  let seen = 0;

  const toEnd = () => {
    list.scrollTop = list.scrollHeight;
  };

  link.addEventListener("frame", ({ detail: { way, text } }) => {
    seen += 1;
    count.textContent = seen;
    if (pause.getAttribute("aria-pressed") === "true") {
      return;
    }
    const frame = { way, text, at: new Date() };
    frames.push(frame);
    if (frames.length > FRAMES_MAX) {
      frames.shift();
    }
    if (inspector.open) {
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
      list.append(drawn(frame));
      if (list.childElementCount > FRAMES_MAX) {
        list.firstElementChild.remove();
      }
      if (atEnd) {
        toEnd();
      }
    }
  });

  inspector.addEventListener("toggle", () => {
    list.replaceChildren(...(inspector.open ? frames.map(drawn) : []));
    toEnd();
  });
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  document.getElementById("inspector-clear").addEventListener("click", () => {
    frames = [];
    list.replaceChildren();
  });
}
