import { $, element, longTime, plural, say, shortTime } from "./dom.js";

const PAGE_SIZE = 100;
const PEOPLE_SHOWN = 3;
const CLOCK_MS = 20_000;

const rows = new Map(); // id of a mail -> its <li>
let limit = PAGE_SIZE;
let shown = "";
let openId = "";
let again = false;
let loading;

const query = () => $("query").value.trim();

export const links = () => [...$("mails").querySelectorAll("a")];
export const linkOf = (id) => rows.get(id)?.querySelector("a");
export const focused = () => document.activeElement.closest("#mails a");
export const idOf = (link) => link?.hash.slice(1) ?? "";

function recipients(mail) {
  const all = [...mail.To, ...mail.Cc, ...mail.Bcc];
  const names = all.slice(0, PEOPLE_SHOWN).map((each) => element("bdi", { textContent: each.Name || each.Address }));
  if (all.length > PEOPLE_SHOWN) names.push(`${all.length - PEOPLE_SHOWN} more`);
  return names.length ? names.flatMap((name) => [", ", name]).slice(1) : ["nobody"];
}

function row(mail) {
  const marks = mail.Tags.map((tag) => element("span", { className: "tag", dir: "auto", textContent: tag }));
  if (mail.Attachments) {
    marks.push(element("span", { className: "tag", textContent: plural(mail.Attachments, "file") }));
  }
  return element("li", {}, element(
    "a",
    { href: `#${mail.ID}` },
    element("span", { className: "unseen state" }),
    element("span", { className: "to" },
      element("span", { textContent: "To " }),
      element("span", { className: "who" }, ...recipients(mail)),
    ),
    element("time", { dateTime: mail.Created, title: longTime(mail.Created), textContent: shortTime(mail.Created) }),
    element("span", { className: "subject", dir: "auto", textContent: mail.Subject || "(no subject)" }),
    element("span", { className: "last" },
      element("span", { className: "snippet", dir: "auto", textContent: mail.Snippet }),
      ...marks,
    ),
  ));
}

// Rows that stay are not moved: moving one would take the keyboard focus away from it.
function show(listing) {
  const ids = new Set(listing.messages.map((mail) => mail.ID));
  for (const [id, item] of rows) {
    if (!ids.has(id)) {
      item.remove();
      rows.delete(id);
    }
  }
  let place = $("mails").firstElementChild;
  for (const mail of listing.messages) {
    if (!rows.has(mail.ID)) {
      rows.set(mail.ID, row(mail));
      $("mails").insertBefore(rows.get(mail.ID), place);
    } else {
      place = rows.get(mail.ID).nextElementSibling;
    }
    const item = rows.get(mail.ID);
    item.classList.toggle("unread", !mail.Read);
    item.querySelector(".state").textContent = mail.Read ? "" : "Unread. ";
  }
  markOpen(openId);
}

export function markOpen(id) {
  openId = id;
  for (const link of links()) {
    if (idOf(link) === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function load() {
  const sought = query();
  const path = sought ? `search?query=${encodeURIComponent(sought)}&` : "messages?";
  try {
    const response = await fetch(`/api/v1/${path}limit=${limit}`);
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    if (sought !== query()) return; // the search has changed meanwhile, and its own answer is on its way
    const listing = JSON.parse(text);
    if (text !== shown) show(listing);
    shown = text;
    const mails = listing.total ? plural(listing.total, "mail") : "No mail";
    const unread = listing.unread ? `, ${listing.unread.toLocaleString("en")} unread` : "";
    say(sought && listing.total ? `${listing.messages_count.toLocaleString("en")} of ${mails}` : mails + unread);
    document.title = listing.unread ? `(${listing.unread}) Inbox` : "Inbox";
    document.body.classList.toggle("empty", listing.total === 0);
    $("empty").hidden = listing.total > 0;
    $("nothing").hidden = listing.total === 0 || listing.messages_count > 0;
    $("sought").textContent = sought;
    $("more").hidden = listing.messages_count <= listing.messages.length;
    $("delete-all").disabled = listing.messages_count === 0;
    $("delete-all").textContent = sought ? "Delete found" : "Delete all";
    $("delete-all").dataset.count = listing.messages_count;
  } catch {
    say("The inbox does not answer; trying again …");
  }
}

// One request at a time; whatever happens during it needs one more, not one each.
export function refresh() {
  again = true;
  loading ??= loadAll();
  return loading;
}

async function loadAll() {
  while (again) {
    again = false;
    await load();
  }
  loading = undefined;
}

export function neighbourOf(id) {
  const item = rows.get(id);
  return (item?.nextElementSibling ?? item?.previousElementSibling)?.querySelector("a");
}

export async function remove(id) {
  await fetch("/api/v1/messages", { method: "DELETE", body: JSON.stringify({ IDs: [id] }) }).catch(() => {});
  await refresh();
}

export async function removeShown() {
  const sought = query();
  const path = sought ? `search?query=${encodeURIComponent(sought)}` : "messages";
  await fetch(`/api/v1/${path}`, { method: "DELETE" }).catch(() => {});
  await refresh();
}

function search() {
  limit = PAGE_SIZE;
  refresh();
}

export function clearSearch() {
  $("query").value = "";
  search();
}

$("query").addEventListener("input", search);
$("clear").addEventListener("click", () => {
  clearSearch();
  $("query").focus();
});
$("more").addEventListener("click", () => {
  limit += PAGE_SIZE;
  refresh();
});
setInterval(() => {
  for (const time of $("mails").querySelectorAll("time")) time.textContent = shortTime(time.dateTime);
}, CLOCK_MS);
