// Everything a mail says is put on the page as text; its HTML goes only into a frame that may run nothing.

const POLL_MS = 2000;
const PAGE_SIZE = 100;
const SOURCE_LIMIT = 1_000_000; // characters; a browser lays out more only slowly

// Against remote content, which would tell the sender that the mail was read. Put first, so that it holds for all
// that follows. Links open in a new tab, as in any mail client; `base` of the mail itself is switched off.
const FRAME_HEAD =
  "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; " +
  "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">" +
  "<meta name='referrer' content='no-referrer'><base target='_blank'>";

const $ = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];
const rows = new Map(); // id of a mail -> its <li>

let limit = PAGE_SIZE;
let lastListing = "";
let chosenTab = null; // the id of the tab the reader picked, kept from mail to mail
let openId = "";

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

const note = (text) => element("p", { className: "note", textContent: text });
const people = (addresses) => addresses.map((each) => each.Name || each.Address).join(", ");
const fullAddress = (each) => (each.Name ? `${each.Name} <${each.Address}>` : each.Address);

function shortTime(iso) {
  const time = new Date(iso);
  const today = time.toDateString() === new Date().toDateString();
  return today
    ? time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })
    : time.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : bytes < 1024 ** 2 ? `${(bytes / 1024).toFixed(1)} kB` : `${(bytes / 1024 ** 2).toFixed(1)} MB`;
}

// --- the list ------------------------------------------------------------------------------------------------

function row(mail) {
  const to = people([...mail.To, ...mail.Cc, ...mail.Bcc]);
  const link = element(
    "a",
    { href: `#${mail.ID}` },
    element("span", { className: "from", dir: "auto", textContent: people([mail.From]) || "(no sender)" }),
    element("time", { dateTime: mail.Created, title: new Date(mail.Created).toLocaleString(), textContent: shortTime(mail.Created) }),
    element("span", { className: "subject", dir: "auto", textContent: mail.Subject || "(no subject)" }),
    element("span", { className: "to", dir: "auto", textContent: `to ${to || "nobody"}` }),
  );
  return element("li", {}, link);
}

// Rows that stay are not moved: moving one would take the keyboard focus away from it.
function showList(listing) {
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
    rows.get(mail.ID).classList.toggle("unread", !mail.Read);
  }
  markOpen();
  $("empty").hidden = listing.total > 0;
  $("more").hidden = listing.total <= listing.messages.length;
  document.title = listing.unread ? `Inbox (${listing.unread})` : "Inbox";
}

function markOpen() {
  for (const [id, item] of rows) {
    const link = item.firstElementChild;
    if (id === openId) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text; // a status is read out when it changes
}

async function refresh() {
  try {
    const response = await fetch(`/api/v1/messages?limit=${limit}`);
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    const listing = JSON.parse(text);
    if (text !== lastListing) showList(listing);
    lastListing = text;
    say(listing.total === 1 ? "1 mail" : `${listing.total.toLocaleString()} mails`);
  } catch {
    say("The inbox does not answer; trying again …");
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}

// --- one mail ------------------------------------------------------------------------------------------------

function facts(mail) {
  const lists = { From: [mail.From], To: mail.To, Cc: mail.Cc, Bcc: mail.Bcc, "Reply-To": mail.ReplyTo };
  const pairs = Object.entries(lists).map(([name, list]) => [name, list.map(fullAddress).join(", ")]);
  pairs.push(["Date", new Date(mail.Date).toLocaleString()]);
  pairs.push(["Attached", [...mail.Attachments, ...mail.Inline].map((part) => `${part.FileName || part.ContentType} (${size(part.Size)})`).join(", ")]);
  return pairs.filter(([, value]) => value).flatMap(([name, value]) => [
    element("dt", { textContent: name }),
    element("dd", { dir: "auto", textContent: value }),
  ]);
}

function htmlFrame(html) {
  const frame = element("iframe", { title: "HTML of the mail", referrerPolicy: "no-referrer" });
  frame.setAttribute("sandbox", "allow-popups allow-popups-to-escape-sandbox"); // links only: no scripts, no origin
  frame.srcdoc = FRAME_HEAD + html;
  return frame;
}

function headerList(source) {
  const [head] = source.split(/\r?\n\r?\n/, 1);
  const lines = head.replace(/\r?\n(?=[ \t])/g, "").split(/\r?\n/);
  return element("dl", {}, ...lines.flatMap((line) => {
    const colon = line.indexOf(":");
    return [
      element("dt", { textContent: line.slice(0, Math.max(colon, 0)) }),
      element("dd", { textContent: line.slice(colon + 1).trim() }),
    ];
  }));
}

function sourceText(id, source) {
  const shown = element("pre", { textContent: source.slice(0, SOURCE_LIMIT) });
  if (source.length <= SOURCE_LIMIT) return [shown];
  const whole = element("a", { href: `/api/v1/message/${id}/raw`, target: "_blank", rel: "noopener", textContent: "the whole source" });
  return [shown, element("p", { className: "note" }, "Cut here; see ", whole, ".")];
}

function selectTab(tab) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", selected);
    each.tabIndex = selected ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !selected;
  }
}

async function fetchMail(id) {
  const path = `/api/v1/message/${encodeURIComponent(id)}`;
  const [message, raw] = await Promise.all([fetch(path), fetch(`${path}/raw`)]);
  if (!message.ok || !raw.ok) throw new Error("gone");
  return [await message.json(), await raw.text()];
}

async function open(id) {
  openId = id;
  document.body.dataset.view = id ? "mail" : "list";
  markOpen();
  if (!id) return close("Choose a mail to read it.");
  let mail, source;
  try {
    [mail, source] = await fetchMail(id);
  } catch {
    if (id === openId) close("This mail is no longer here.");
    return;
  }
  if (id !== openId) return; // another one was chosen meanwhile
  $("subject").textContent = mail.Subject || "(no subject)";
  $("facts").replaceChildren(...facts(mail));
  $("panel-html").replaceChildren(mail.HTML ? htmlFrame(mail.HTML) : note("This mail has no HTML part."));
  $("panel-text").replaceChildren(mail.Text ? element("pre", { dir: "auto", textContent: mail.Text }) : note("This mail has no text part."));
  $("panel-headers").replaceChildren(headerList(source));
  $("panel-source").replaceChildren(...sourceText(id, source));
  selectTab($(chosenTab ?? (mail.HTML ? "tab-html" : "tab-text")));
  $("placeholder").hidden = true;
  $("reader").hidden = false;
  $("mail").scrollTop = 0;
  if (!$("mails").checkVisibility()) $("subject").focus(); // a narrow screen: the list, and the focus in it, is gone
  refresh();
}

function close(reason) {
  $("placeholder").textContent = reason;
  $("placeholder").hidden = false;
  $("reader").hidden = true;
}

// --- events --------------------------------------------------------------------------------------------------

for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab($((chosenTab = tab.id))));
  tab.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.indexOf(tab), End: tabs.length - 1 - tabs.indexOf(tab) };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = tabs.at((tabs.indexOf(tab) + steps[event.key]) % tabs.length);
    next.focus();
    next.click();
  });
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # names the open mail
  $("mail").focus();
});

$("more").addEventListener("click", () => {
  limit += PAGE_SIZE;
  refresh();
});

addEventListener("hashchange", () => {
  const previous = rows.get(openId);
  open(location.hash.slice(1));
  if (!openId) previous?.firstElementChild.focus();
});

document.addEventListener("visibilitychange", () => document.hidden || refresh());

open(location.hash.slice(1));
poll();
