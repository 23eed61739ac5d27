// The list of events. coordinator/src/event_messages.rs has the same descriptions of events.

import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { displayName, formatDateTime, formatNumber, formatTime } from "./format.js";

const ERROR_KINDS = new Set(["lost", "save_failed", "checkpoint_damaged", "rollback", "divergence", "failed"]);
const WARNING_KINDS = new Set(["guard", "paused", "stopped", "adopted"]);

/** By kind of event: describes the detail in one line. Other kinds: `describeFields`. */
const DESCRIPTIONS = {
  generation: (d) => `${d.generation} with ${d.members} worker${d.members === 1 ? "" : "s"}, from stage ${d.stage} step ${d.step}: ${d.cause}`,
  checkpoint: (d) => d.name,
  joined: (d) => `worker ${d.rank} from ${d.host}${d.device ? `, ${d.device}` : ""}`,
  rollback: (d) => describeJump(d),
  adopted: (d) => describeJump(d),
  stage_ended: (d) => [
    `stage ${d.stage} with the checkpoint of step ${d.step}: ${d.reason}`, ...(d.passed_over ?? []).map(describeUnselected),
  ].join("; "),
  guard: (d) => `${displayName(d.metric)} is ${formatNumber(d.value)}, bound ${formatNumber(d.bound)}, at stage ${d.stage} step ${d.step}: ${d.action}`,
};

/** A JSON value as text. */
function valueText(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : formatNumber(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Describes how the run goes on from another position than it had reached. */
const describeJump = ({ from, to, source }) =>
  `from stage ${from.stage} step ${from.step} to stage ${to.stage} step ${to.step}, with the parameters of ${source}`;

/**
 * Describes a later checkpoint than the one with which a stage ended: a user may have expected the
 * stage to end with it.
 */
function describeUnselected({ step, score, reason }) {
  return `step ${step}${Number.isFinite(score) ? ` (score ${formatNumber(score)})` : ""} was not selected: ${reason}`;
}

/**
 * Describes an event by its worker, reason and position, then all other fields of its detail. The
 * field `at` of a detail is a position; only `at` of the event itself is a time.
 */
function describeFields({ rank, host, reason, stage, step, at, ...others }) {
  const position = at ?? (step === undefined ? undefined : `stage ${valueText(stage)} step ${valueText(step)}`);
  const common = [
    rank === undefined ? null : `worker ${valueText(rank)}`, host === undefined ? null : `on ${valueText(host)}`,
    reason === undefined ? null : valueText(reason), position === undefined ? null : `at ${valueText(position)}`,
  ].filter(Boolean);
  const details = Object.entries(others).map(([name, value]) => `${displayName(name)} ${valueText(value)}`);
  return [common.join(", "), ...details].filter(Boolean).join(" · ");
}

function describe({ kind, detail }) {
  if (detail === null || typeof detail !== "object") return valueText(detail ?? "");
  return DESCRIPTIONS[kind]?.(detail) ?? describeFields(detail);
}

/** Loads and shows the last events. */
export async function refresh() {
  const events = await get("events");
  byId("events").replaceChildren(...events.map((event) => {
    const tone = ERROR_KINDS.has(event.kind) ? "bad" : WARNING_KINDS.has(event.kind) ? "warn" : null;
    return el("li", { "data-tone": tone },
      el("time", { datetime: new Date(event.at * 1000).toISOString(), title: formatDateTime(event.at) }, formatTime(event.at)),
      el("span", { class: "kind" }, tone ? el("span", { "aria-hidden": "true" }, tone === "bad" ? "✕ " : "! ") : null, displayName(event.kind)),
      el("span", { class: "text" }, describe(event)));
  }));
}
