"use strict";

document.documentElement.classList.add("scripted");
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// Times come in UTC; here they are shown in the reader's zone. The exact one stays on hover.
function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) time.textContent = local.format(new Date(time.dateTime));
  for (const input of root.querySelectorAll("input[name=zone]")) input.setAttribute("value", zone);
  for (const place of root.querySelectorAll("[data-zone]")) place.textContent = zone;
}

// Makes one element like another without taking away what somebody is at: focus, what was typed, what was opened.
function become(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const kept = new Set([...fresh.children].map((child) => child.id).filter(Boolean));
  for (const child of [...old.children]) if (child.id && !kept.has(child.id)) child.remove();
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const known = next.id && [...old.children].find((child) => child.id === next.id);
    const same = known || (at && !at.id && at.nodeName === next.nodeName && !next.id ? at : null);
    if (!same) {
      old.insertBefore(next, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    if (same.nodeType === Node.ELEMENT_NODE) {
      // What is framed has a document of its own, which would load again.
      if (!same.dataset.frame) become(same, next);
    } else if (same.nodeValue !== next.nodeValue) {
      same.nodeValue = next.nodeValue;
    }
  }
  while (at) {
    const rest = at.nextSibling;
    at.remove();
    at = rest;
  }
}

const hovers = matchMedia("(hover: hover)");
const pointedAt = (part) => hovers.matches && part.querySelector(".table:hover") !== null;

// A live part of a page: the server sends its inside whenever it changes.
function follow(part) {
  let waiting = null;
  function show() {
    const fresh = part.cloneNode(false);
    fresh.innerHTML = waiting;
    waiting = null;
    localise(fresh);
    become(part, fresh);
    note("paused", false);
  }
  listen(part.dataset.events, ({ data }) => {
    waiting = data;
    // Rows must not move away under a mouse that is about to click.
    if (pointedAt(part)) note("paused", true);
    else show();
  });
  document.addEventListener("pointermove", () => waiting !== null && !pointedAt(part) && show());
}

// A browser keeps six connections to a server, and a stream takes one for good: a page that nobody sees has none.
function listen(address, tell) {
  let stream;
  let ended = false;
  function open() {
    stream?.close();
    if (document.hidden || ended) return;
    stream = new EventSource(address);
    stream.addEventListener("page", tell);
    stream.addEventListener("end", () => {
      ended = true;
      stream.close();
    });
    stream.addEventListener("open", () => note("stale", false));
    stream.addEventListener("error", () => note("stale", stream.readyState === EventSource.CLOSED && !ended));
  }
  document.addEventListener("visibilitychange", open);
  open();
}

function note(name, is) {
  document.querySelector(`.${name}`).hidden = !is;
}

// Posts a form into a fresh frame, which takes the old one's place when it has loaded. A frame that is used again
// would put each of its pages into the history of the tab.
let frames = 0;
function fillFrame(form, place) {
  const fresh = place.firstElementChild.cloneNode();
  fresh.removeAttribute("src");
  fresh.name = `frame-${++frames}`;
  fresh.classList.add("coming");
  place.append(fresh);
  fresh.addEventListener("load", () => {
    if (!fresh.isConnected) return;
    fresh.classList.remove("coming");
    while (place.firstElementChild !== fresh) place.firstElementChild.remove();
  });
  // A form of its own: one form has one navigation under way, and the next takes its place.
  const copy = document.createElement("form");
  Object.assign(copy, { method: "post", action: place.dataset.frame, target: fresh.name, hidden: true });
  for (const [name, value] of new FormData(form)) {
    if (typeof value !== "string") continue;
    const field = document.createElement("textarea"); // an input would take line breaks away
    Object.assign(field, { name, value });
    copy.append(field);
  }
  document.body.append(copy);
  copy.submit();
  copy.remove();
}

// A form that is looked over while it is written: remarks and frames follow what stands in it.
function lookOver(form) {
  let asked = 0;
  async function look() {
    const mine = ++asked;
    let answer;
    try {
      answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    } catch {
      answer = null;
    }
    if (mine !== asked) return;
    // With remarks it is a 422; of what is no page of this form the one that is there says more.
    const page = answer && new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page?.querySelector("form[data-live]");
    note("stale", !fresh);
    if (!fresh || mine !== asked) return;
    const main = page.querySelector("main");
    localise(main);
    become(document.querySelector("main"), main);
    fill();
  }
  function fill() {
    for (const place of form.querySelectorAll("[data-frame]")) fillFrame(form, place);
  }
  let soon = 0;
  form.addEventListener("input", ({ target }) => {
    if (target.closest("[data-aside]")) return;
    clearTimeout(soon);
    soon = setTimeout(look, 400);
  });
  const file = form.querySelector("input[type=file]");
  file?.addEventListener("change", async () => {
    if (!file.files.length) return;
    form.elements[file.dataset.into].value = await file.files[0].text();
    look();
  });
  if (form.dataset.live === "at once") fill();
  // In development: the templates on the disk. The first event tells how they are, the next that they have changed.
  let known = null;
  if (form.dataset.changes) {
    listen(form.dataset.changes, ({ data }) => {
      if (known !== null && known !== data) look();
      known = data;
    });
  }
}

// Such as one's own address: kept in this browser, for the next form that asks.
function remember(input) {
  try {
    if (!input.value) input.value = localStorage.getItem("console.me") ?? "";
    input.addEventListener("change", () => localStorage.setItem("console.me", input.value));
  } catch {
    // a browser that keeps nothing
  }
}

localise(document);
document.querySelectorAll("[data-remember]").forEach(remember);
document.querySelectorAll("form[data-live]").forEach(lookOver);
document.querySelectorAll("[data-events]").forEach(follow);
