import { $, plural } from "./dom.js";
import {
  clearSearch, focused, idOf, linkOf, links, markOpen, neighbourOf, refresh, remove, removeShown,
} from "./list.js";
import { open } from "./reader.js";

const POLL_MS = 5000;

const openId = () => location.hash.slice(1);

// --- news ----------------------------------------------------------------------------------------------------

let stream;

// A browser keeps only six connections to one server, and a stream takes one for good: a page that is not seen asks
// now and then instead, as does one whose stream is broken.
function listen() {
  stream?.close();
  stream = document.hidden ? undefined : new EventSource("/api/events");
  if (stream) stream.onmessage = stream.onerror = refresh;
}

document.addEventListener("visibilitychange", listen);
setInterval(() => stream?.readyState === EventSource.OPEN || refresh(), POLL_MS);

// --- the open mail, named by the address of the page ---------------------------------------------------------

async function showMail() {
  const id = openId();
  document.body.dataset.view = id ? "mail" : "list";
  markOpen(id);
  await open(id);
  refresh();
}

addEventListener("hashchange", (event) => {
  showMail();
  if (!openId()) linkOf(new URL(event.oldURL).hash.slice(1))?.focus();
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # names the open mail
  $("mail").focus();
});

// --- deleting ------------------------------------------------------------------------------------------------

// The way back in the browser's history must not lead to a mail that is no more.
function forget() {
  history.replaceState(null, "", location.pathname);
  showMail();
}

// The focus goes first: it would be lost with what it is in.
function deleteMail(id) {
  if (!id) return;
  if (id === openId()) forget();
  (neighbourOf(id) ?? $("list")).focus();
  remove(id);
}

$("delete").addEventListener("click", () => deleteMail(openId()));

$("delete-all").addEventListener("click", () => {
  const mails = plural(Number($("delete-all").dataset.count), "mail");
  const sought = $("query").value.trim();
  $("confirm-title").textContent = sought ? `Delete the ${mails} that were found?` : `Delete all ${mails}?`;
  $("confirm").showModal();
});

$("confirmed").addEventListener("click", async () => {
  await removeShown();
  $("confirm").close();
  forget();
  $("list").focus();
});

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// --- keys ----------------------------------------------------------------------------------------------------

function step(by) {
  const all = links();
  const from = focused() ?? linkOf(openId());
  const next = all[from ? all.indexOf(from) + by : 0];
  if (!next) return;
  if (openId() && !focused()) next.click(); // from within a mail to the next
  else next.focus();
}

const inList = () => [document.body, $("list"), focused()].includes(document.activeElement);

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => inList() && step(1),
  ArrowUp: () => inList() && step(-1),
  "/": () => $("query").select(),
  "#": () => deleteMail(idOf(focused()) || openId()),
  Delete: () => deleteMail(idOf(focused()) || openId()),
  Escape: () => openId() && (location.hash = ""),
  "?": () => $("keys").showModal(),
};

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable], dialog");
  if (typing || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  if (KEYS[event.key]() !== false) event.preventDefault();
});

$("query").addEventListener("keydown", (event) => {
  if (event.isComposing || !["Escape", "Enter", "ArrowDown"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Escape" && $("query").value) clearSearch();
  else (links()[0] ?? $("list")).focus();
});

$("show-keys").addEventListener("click", () => $("keys").showModal());

for (const host of document.querySelectorAll(".host")) host.textContent = location.hostname.replace(/[[\]]/g, "");

$("query").value = new URLSearchParams(location.search).get("query") ?? "";
listen();
showMail();
