// What happened.

import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { clock, date, number, words } from "./format.js";

const BAD = new Set(["lost", "save_failed", "checkpoint_damaged", "rollback", "divergence", "failed"]);
const WARN = new Set(["guard", "paused", "stopped", "adopted"]);

/** What an event is about, in a line. */
const TEXTS = {
  generation: (d) => `${d.generation} with ${d.members} worker${d.members === 1 ? "" : "s"}, from stage ${d.stage} step ${d.step}: ${d.cause}`,
  checkpoint: (d) => d.name,
  joined: (d) => `rank ${d.rank} from ${d.host}${d.device ? `, ${d.device}` : ""}`,
  rollback: (d) => moved(d),
  adopted: (d) => moved(d),
  stage_ended: (d) => [`stage ${d.stage} with its state at step ${d.step}: ${d.reason}`, ...(d.passed_over ?? []).map(passedOver)].join("; "),
  guard: (d) => `${words(d.metric)} is ${number(d.value)}, bound ${number(d.bound)}, at stage ${d.stage} step ${d.step}: ${d.action}`,
};

function plain(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

const moved = ({ from, to, source }) => `from stage ${from.stage} step ${from.step} to stage ${to.stage} step ${to.step}: the state of ${source}`;

function passedOver({ step, score, reason }) {
  return `step ${step}${Number.isFinite(score) ? ` (score ${number(score)})` : ""} was passed over: ${reason}`;
}

/** Who, why and where, and whatever else there is. */
function general({ rank, host, reason, stage, step, at, ...rest }) {
  const place = at ?? (step === undefined ? undefined : `stage ${plain(stage)} step ${plain(step)}`);
  const parts = [
    rank === undefined ? null : `rank ${plain(rank)}`, host === undefined ? null : `on ${plain(host)}`,
    reason === undefined ? null : plain(reason), place === undefined ? null : `at ${plain(place)}`,
  ].filter(Boolean);
  return [parts.join(", "), ...Object.entries(rest).map(([name, value]) => `${words(name)} ${plain(value)}`)].filter(Boolean).join(" · ");
}

function text({ kind, detail }) {
  if (detail === null || typeof detail !== "object") return plain(detail ?? "");
  return TEXTS[kind]?.(detail) ?? general(detail);
}

export async function refresh() {
  const events = await get("events");
  byId("events").replaceChildren(...events.map((event) => {
    const tone = BAD.has(event.kind) ? "bad" : WARN.has(event.kind) ? "warn" : null;
    return el("li", { "data-tone": tone },
      el("time", { datetime: new Date(event.at * 1000).toISOString(), title: date(event.at) }, clock(event.at)),
      el("span", { class: "kind" }, tone ? el("span", { "aria-hidden": "true" }, tone === "bad" ? "✕ " : "! ") : null, words(event.kind)),
      el("span", { class: "text" }, text(event)));
  }));
}
