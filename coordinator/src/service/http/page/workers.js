// The table of workers.

import { byId, el, setAttribute, setText } from "./dom.js";
import { formatInteger, formatNumber, formatSeconds } from "./format.js";

/** Headings of the columns, with their CSS classes. */
const COLUMNS = [
  ["Id", "id"], ["Host", "host"], ["Device", "device"], ["Phase", "phase"], ["Step", "step"], ["Images/s", "images"],
  ["Tokens/s", "tokens"], ["Lag", "lag"], ["Last message", "last-message"], ["Drain", "drain"],
];
const PHASE_COLUMN = 3;
const LAST_MESSAGE_COLUMN = 8;
/**
 * Seconds without a message after which the last message of a worker is highlighted. Heartbeats
 * come every second, less often if `workers.max` is above 5,000.
 */
const SILENCE_WARNING_SECONDS = 5;

/**
 * The compute time of a member in the last step minus the average of the others, in seconds; null
 * if it is unknown. `measured` are the members with known compute times, `total` is the sum of
 * these times.
 */
function computeLag(member, measured, total) {
  const others = measured.length - 1;
  if (others <= 0 || !(member.compute_seconds > 0)) return null;
  return member.compute_seconds - (total - member.compute_seconds) / others;
}

export class Workers {
  /** `onDrain` is called with a worker id. */
  constructor(onDrain) {
    this.onDrain = onDrain;
    /** Rows by worker id. */
    this.rows = new Map();
    this.body = el("tbody", {});
    const headings = COLUMNS.map(([name, className]) => el("th", { scope: "col", class: className },
      className === "drain" ? el("span", { class: "hidden" }, name) : name));
    this.table = el("table", {}, el("thead", {}, el("tr", {}, ...headings)), this.body);
    this.empty = el("p", { class: "empty" }, "No worker is attached.");
    byId("workers").append(this.table, this.empty);
  }

  createRow(workerId) {
    const cells = COLUMNS.map(([, className], index) => el(index === 0 ? "th" : "td", {
      ...(index === 0 ? { scope: "row" } : {}), class: className,
    }));
    const button = el("button", {
      type: "button", "aria-label": `Drain worker ${workerId}`, on: { click: () => this.onDrain(workerId) },
    }, "Drain");
    cells.at(-1).append(button);
    return { root: el("tr", {}, ...cells), cells, button };
  }

  /** Shows the members of a snapshot. Without `areCommandsAllowed` workers cannot be drained. */
  update(snapshot, areCommandsAllowed) {
    const { members, workers, slowest_rank: slowest } = snapshot;
    const measured = members.filter((member) => member.compute_seconds > 0);
    const total = measured.reduce((sum, member) => sum + member.compute_seconds, 0);
    const attached = new Set(members.map(({ rank }) => rank));
    for (const [workerId, { root }] of this.rows) {
      if (!attached.has(workerId)) {
        root.remove();
        this.rows.delete(workerId);
      }
    }
    members.forEach((member, index) => {
      const row = this.rows.get(member.rank) ?? this.createRow(member.rank);
      this.rows.set(member.rank, row);
      if (this.body.children[index] !== row.root) this.body.insertBefore(row.root, this.body.children[index] ?? null);
      const memberLag = computeLag(member, measured, total);
      const texts = [
        formatInteger(member.rank), member.host, member.device, member.phase,
        member.step === null ? "–" : formatInteger(member.step),
        member.images_per_second > 0 ? formatNumber(member.images_per_second) : "–",
        member.tokens_per_second > 0 ? formatInteger(member.tokens_per_second) : "–",
        memberLag === null ? "–" : memberLag > 0.0005 ? formatSeconds(memberLag) : "0",
        `${member.seconds_since_heard.toFixed(1)} s ago`,
      ];
      texts.forEach((text, column) => setText(row.cells[column], text));
      setAttribute(row.root, "class", member.rank === slowest && workers > 1 ? "slowest" : null);
      setAttribute(row.cells[LAST_MESSAGE_COLUMN], "data-tone", member.seconds_since_heard > SILENCE_WARNING_SECONDS ? "warn" : null);
      setAttribute(row.cells[PHASE_COLUMN], "data-phase", member.phase);
      row.button.disabled = !areCommandsAllowed;
    });
    this.table.hidden = members.length === 0;
    this.empty.hidden = members.length > 0;
    const notes = [];
    if (workers > members.length) notes.push(`the first ${formatInteger(members.length)} of ${formatInteger(workers)}`);
    if (slowest !== null && workers > 1) {
      notes.push(`slowest in the last step: worker ${formatInteger(slowest)}, lag ${formatSeconds(Math.max(0, snapshot.lag_seconds))}`);
    }
    setText(byId("workers-note"), notes.join("; "));
  }
}
