/** The inspector: the last raw frames of a Link, both ways, as they were on the wire. */

const FRAMES_MAX = 300;
const SHOWN_MAX = 4_000;

export function inspect(link) {
  const list = document.getElementById("frames");
  const pause = document.getElementById("inspector-pause");
  let count = 0;

  link.addEventListener("frame", ({ detail: { way, text } }) => {
    count += 1;
    document.getElementById("frame-count").textContent = count;
    if (pause.getAttribute("aria-pressed") === "true") {
      return;
    }
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const item = document.createElement("li");
    item.className = way;
    const time = document.createElement("time");
    time.textContent = new Date().toISOString().slice(11, 23);
    const arrow = document.createElement("span");
    arrow.className = "way";
    arrow.textContent = { in: "↓", out: "↑", note: "•" }[way];
    const code = document.createElement("code");
    code.textContent = text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}… (${text.length} characters)` : text;
    item.append(time, arrow, code);
    list.append(item);
    while (list.childElementCount > FRAMES_MAX) {
      list.firstElementChild.remove();
    }
    if (atEnd) {
      list.scrollTop = list.scrollHeight;
    }
  });

  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  document.getElementById("inspector-clear").addEventListener("click", () => list.replaceChildren());
}
