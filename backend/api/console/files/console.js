"use strict";

// Times come in UTC; here they are shown in the reader's zone. The exact one stays on hover.
const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.textContent = shown.format(new Date(time.dateTime));
  }
}

// A live part of a page: the server sends its inside whenever it changes.
function follow(part) {
  const stream = new EventSource(part.dataset.events);
  const phase = phaseOf(part);
  stream.addEventListener("page", ({ data }) => {
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = data;
    localise(part);
    // What can be done has changed, and with it the buttons of the page.
    if (phaseOf(part) !== phase) return location.reload();
    if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  });
  stream.addEventListener("end", () => stream.close());
  stream.addEventListener("open", () => stale(false));
  stream.addEventListener("error", () => stale(stream.readyState === EventSource.CLOSED));
}

function phaseOf(part) {
  return part.querySelector("[data-phase]")?.dataset.phase;
}

function stale(is) {
  document.querySelector(".stale").hidden = !is;
}

// A form that is looked over while it is written.
function lookOver(form) {
  const remarks = form.querySelector("[data-remarks]");
  let waiting = 0;
  async function check() {
    const mine = ++waiting;
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.dataset.check, { method: "POST", body });
    if (!answer.ok || mine !== waiting) return;
    remarks.innerHTML = await answer.text();
    form.requestSubmit(form.querySelector("[data-preview]"));
  }
  let soon = 0;
  form.addEventListener("input", ({ target }) => {
    if (!["subject", "body", "recipients"].includes(target.name)) return;
    clearTimeout(soon);
    soon = setTimeout(check, 400);
  });
  const file = form.querySelector("[data-file]");
  file.hidden = false;
  file.querySelector("input").addEventListener("change", async ({ target }) => {
    if (!target.files.length) return;
    form.elements.recipients.value = await target.files[0].text();
    check();
  });
  form.requestSubmit(form.querySelector("[data-preview]"));
}

localise(document);
document.querySelectorAll("form[data-check]").forEach(lookOver);
document.querySelectorAll("[data-events]").forEach(follow);
