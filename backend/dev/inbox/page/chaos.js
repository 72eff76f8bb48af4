import { $ } from "./dom.js";

const form = $("chaos-form");

function show({ fault, probability, seconds }) {
  form.elements.fault.value = fault;
  form.elements.percent.value = Math.round(probability * 100);
  form.elements.seconds.value = seconds;
  const on = fault !== "none";
  $("show-chaos").textContent = on ? `Chaos: ${fault}` : "Chaos";
  $("show-chaos").classList.toggle("danger", on);
}

async function read() {
  const answer = await fetch("/api/chaos");
  if (answer.ok) show(await answer.json());
}

$("show-chaos").addEventListener("click", async () => {
  await read();
  $("chaos").showModal();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { fault, percent, seconds } = form.elements;
  const trouble = { fault: fault.value, probability: percent.value / 100, seconds: Number(seconds.value) };
  const answer = await fetch("/api/chaos", { method: "PUT", body: JSON.stringify(trouble) });
  if (!answer.ok) return;
  show(await answer.json());
  $("chaos").close();
});

read();
