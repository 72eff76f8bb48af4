// Whatever a mail says is put on the page as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export const note = (text) => element("p", { className: "note", textContent: text });

export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text; // a status is read out when it changes
}

export const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

export function shortTime(iso) {
  const time = new Date(iso);
  const now = new Date();
  const minutes = Math.floor((now - time) / 60_000);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${minutes} min`;
  if (time.toDateString() === now.toDateString()) {
    return time.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  }
  const year = time.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return time.toLocaleDateString("en-GB", { day: "numeric", month: "short", year });
}

export const longTime = (iso) => new Date(iso).toLocaleString("en-GB", { dateStyle: "full", timeStyle: "long" });

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
