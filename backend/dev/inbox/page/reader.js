import { $, element, longTime, note, size } from "./dom.js";

const SHOWN_LIMIT = 1_000_000; // characters; a browser lays out more only slowly

// To ask before, not to guard: whatever this overlooks is not loaded either (backend/dev/inbox/view.py).
const REMOTE_IMAGE = new RegExp(
  String.raw`(?:<(?!script|i?frame|embed|audio|track)[a-z][^<>]*\s(?:src|srcset|background|poster)\s*=\s*|url\(\s*)["']?\s*(?:https?:)?//`,
  "i",
);
const LINK = /https?:\/\/[^\s<>"]+[^\s<>"'.,;:!?)\]}]/g;

const tabs = [...document.querySelectorAll("[role=tab]")];
let chosenTab = null; // what the reader picked is kept from mail to mail
let openId = "";

const path = (id) => `/api/v1/message/${encodeURIComponent(id)}`;

// Each name by itself: the direction of one must not turn what stands beside it.
const isolated = (text) => element("bdi", { textContent: text });

function fullAddress({ Name, Address }) {
  if (!Name || !Address) return isolated(Name || Address);
  return element("span", {}, isolated(Name), " <", isolated(Address), ">");
}

function facts(mail) {
  const from = [mail.From].filter((each) => each.Name || each.Address);
  const lists = { From: from, To: mail.To, Cc: mail.Cc, Bcc: mail.Bcc, "Reply-To": mail.ReplyTo };
  const pairs = Object.entries(lists).map(([name, list]) => [name, list.map(fullAddress)]);
  pairs.push(["Date", [longTime(mail.Date)]], ["Tags", mail.Tags.map(isolated)]);
  return pairs.filter(([, values]) => values.length).flatMap(([name, values]) => [
    element("dt", { textContent: name }),
    element("dd", {}, ...values.flatMap((value) => [", ", value]).slice(1)),
  ]);
}

function attachment(id, part) {
  const name = part.FileName || part.ContentType;
  const link = element("a", { className: "button", href: `${path(id)}/part/${encodeURIComponent(part.PartID)}`, download: "" });
  link.append(isolated(name), element("small", { textContent: size(part.Size) }));
  return element("li", {}, link);
}

function htmlFrame(id, remote) {
  const frame = element("iframe", { title: "HTML of the mail", referrerPolicy: "no-referrer" });
  frame.setAttribute("sandbox", "allow-popups allow-popups-to-escape-sandbox"); // links only: no scripts, no origin
  frame.src = `/view/${encodeURIComponent(id)}.html${remote ? "?remote=1" : ""}`;
  return frame;
}

function withLinks(text) {
  const pieces = [];
  let end = 0;
  for (const { 0: url, index } of text.matchAll(LINK)) {
    const link = element("a", { href: url, target: "_blank", rel: "noopener noreferrer", textContent: url });
    pieces.push(text.slice(end, index), link);
    end = index + url.length;
  }
  return [...pieces, text.slice(end)];
}

function cut(id, text, shown) {
  if (text.length <= SHOWN_LIMIT) return [shown];
  const whole = element("a", { href: `${path(id)}/raw`, target: "_blank", rel: "noopener", textContent: "the whole source" });
  return [shown, element("p", { className: "note" }, "Cut here; see ", whole, ".")];
}

function headerList(source) {
  const [head] = source.slice(0, SHOWN_LIMIT).split(/\r?\n\r?\n/, 1);
  const lines = head.replace(/\r?\n(?=[ \t])/g, "").split(/\r?\n/);
  return element("dl", {}, ...lines.flatMap((line) => {
    const colon = line.indexOf(":");
    return [
      element("dt", { textContent: line.slice(0, Math.max(colon, 0)) }),
      element("dd", { textContent: line.slice(colon + 1).trim() }),
    ];
  }));
}

async function fetchMail(id) {
  const [message, raw] = await Promise.all([fetch(path(id)), fetch(`${path(id)}/raw`)]);
  if (!message.ok || !raw.ok) throw new Error("gone");
  return [await message.json(), await raw.text()];
}

export async function open(id) {
  openId = id;
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
  $("attachments").replaceChildren(...[...mail.Attachments, ...mail.Inline].map((part) => attachment(id, part)));
  $("attachments").hidden = !$("attachments").childElementCount;
  $("download").href = `${path(id)}/raw?dl=1`;
  $("remote").hidden = !REMOTE_IMAGE.test(mail.HTML);
  $("canvas").replaceChildren(mail.HTML ? htmlFrame(id, false) : note("This mail has no HTML part."));
  const text = element("pre", { dir: "auto" }, ...withLinks(mail.Text.slice(0, SHOWN_LIMIT)));
  $("panel-text").replaceChildren(...(mail.Text ? cut(id, mail.Text, text) : [note("This mail has no text part.")]));
  $("panel-headers").replaceChildren(headerList(source));
  const raw = element("pre", { textContent: source.slice(0, SHOWN_LIMIT) });
  $("panel-source").replaceChildren(...cut(id, source, raw));
  select($(chosenTab ?? (mail.HTML ? "tab-html" : "tab-text")));
  $("placeholder").hidden = true;
  $("reader").hidden = false;
  $("mail").scrollTop = 0;
  if (!$("mails").checkVisibility()) $("subject").focus(); // a narrow screen: the list, and the focus in it, is gone
}

function close(reason) {
  $("placeholder").textContent = reason;
  $("placeholder").hidden = false;
  $("reader").hidden = true;
  $("canvas").replaceChildren();
}

function select(tab) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", selected);
    each.tabIndex = selected ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !selected;
  }
  $("looks").hidden = tab.id !== "tab-html";
}

function press(button, pressed) {
  button.setAttribute("aria-pressed", pressed);
  $("canvas").classList.toggle(button.id, pressed);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => select($((chosenTab = tab.id))));
  tab.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(tab);
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -at, End: tabs.length - 1 - at };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = tabs[(at + steps[event.key] + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

for (const button of [$("phone"), $("dark")]) {
  button.addEventListener("click", () => press(button, button.getAttribute("aria-pressed") === "false"));
}
press($("dark"), matchMedia("(prefers-color-scheme: dark)").matches);

$("load").addEventListener("click", () => {
  $("canvas").replaceChildren(htmlFrame(openId, true));
  $("remote").hidden = true;
  $("tab-html").focus();
});
