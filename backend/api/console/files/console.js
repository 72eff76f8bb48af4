"use strict";

// Times come in UTC; here they are shown in the reader's zone. The exact one stays on hover.
const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

for (const time of document.querySelectorAll("time[datetime]")) {
  time.textContent = shown.format(new Date(time.dateTime));
}
