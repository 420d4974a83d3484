"use strict";

// What the reader has opened and where they are, kept while the page reloads itself.
const memory = {
  key: "report " + location.pathname,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(change) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...change })); } catch { /* no storage */ }
  },
};

const panels = () => [...document.querySelectorAll("details[id]")];

function remember() {
  const open = Object.fromEntries(panels().map((panel) => [panel.id, panel.open]));
  memory.write({ scroll: scrollY, open, focus: document.activeElement.id });
}

function restore() {
  const { scroll, open = {} } = memory.read();
  for (const panel of panels()) if (panel.id in open) panel.open = open[panel.id];
  if (scroll) scrollTo(0, scroll);
}

// What has the keyboard may be drawn by a later script, so this waits for all of them.
function restoreFocus() {
  const { focus } = memory.read();
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
}

function ago(seconds) {
  if (seconds < 90) return Math.max(0, Math.round(seconds)) + " s ago";
  if (seconds < 5400) return Math.round(seconds / 60) + " min ago";
  if (seconds < 129600) return Math.round(seconds / 3600) + " h ago";
  return Math.round(seconds / 86400) + " days ago";
}

// Says how old the page is. A run that writes no more has been killed, or this is a copy.
function showAge() {
  const status = document.getElementById("status"), written = document.getElementById("written");
  const next = Number(status.dataset.next), seconds = Date.now() / 1000 - Number(status.dataset.written);
  const isStale = next > 0 && seconds > 4 * next + 30;
  status.classList.toggle("stale", isStale);
  written.textContent = "last written " + ago(seconds) + ", " + written.dataset.when
    + (isStale ? ": the run was killed, or this is a copy of its page" : "");
}

function reloadWhileItRuns() {
  const next = Number(document.getElementById("status").dataset.next);
  if (next > 0) setTimeout(() => { remember(); location.reload(); }, 1000 * (next + 1));
}

document.getElementById("written").dataset.when =
  document.getElementById("written").textContent.replace("last written ", "");
restore();
addEventListener("DOMContentLoaded", restoreFocus);
showAge();
setInterval(showAge, 1000);
addEventListener("pagehide", remember);
reloadWhileItRuns();
