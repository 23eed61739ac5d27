// The workers, one row each.

import { byId, el, mark, say } from "./dom.js";
import { integer, number, seconds } from "./format.js";

const COLUMNS = ["Rank", "Host", "Device", "Phase", "Step", "Images/s", "Tokens/s", "Behind", "Heard", "Drain"];
/** Seconds without a word after which a worker is worth a look; heartbeats come every second or two. */
const SILENT = 5;

export class Workers {
  /** `drain` is called with a rank. */
  constructor(drain) {
    this.drain = drain;
    this.rows = new Map();
    this.body = el("tbody", {});
    const head = COLUMNS.map((name) => el("th", { scope: "col", class: name.toLowerCase().replace("/s", "") }, name === "Drain" ? el("span", { class: "hidden" }, name) : name));
    this.table = el("table", {}, el("thead", {}, el("tr", {}, ...head)), this.body);
    this.empty = el("p", { class: "empty" }, "No worker is attached.");
    byId("workers").append(this.table, this.empty);
  }

  row(rank) {
    const cells = COLUMNS.map((name, index) => el(index === 0 ? "th" : "td", {
      ...(index === 0 ? { scope: "row" } : {}), class: name.toLowerCase().replace("/s", ""),
    }));
    const button = el("button", { type: "button", "aria-label": `Drain rank ${rank}`, on: { click: () => this.drain(rank) } }, "Drain");
    cells.at(-1).append(button);
    return { root: el("tr", {}, ...cells), cells, button };
  }

  update(snapshot, allowed) {
    const { members, workers, slowest_rank: slowest } = snapshot;
    const measured = members.filter((member) => member.compute_seconds > 0);
    const total = measured.reduce((sum, member) => sum + member.compute_seconds, 0);
    const present = new Set(members.map(({ rank }) => rank));
    for (const [rank, { root }] of this.rows) {
      if (!present.has(rank)) {
        root.remove();
        this.rows.delete(rank);
      }
    }
    members.forEach((member, index) => {
      const row = this.rows.get(member.rank) ?? this.row(member.rank);
      this.rows.set(member.rank, row);
      if (this.body.children[index] !== row.root) this.body.insertBefore(row.root, this.body.children[index] ?? null);
      const others = measured.length - 1;
      const behind = others > 0 && member.compute_seconds > 0 ? member.compute_seconds - (total - member.compute_seconds) / others : null;
      const texts = [
        integer(member.rank), member.host, member.device, member.phase,
        member.step === null ? "–" : integer(member.step),
        member.images_per_second > 0 ? number(member.images_per_second) : "–",
        member.tokens_per_second > 0 ? integer(member.tokens_per_second) : "–",
        behind === null ? "–" : behind > 0.0005 ? seconds(behind) : "0",
        `${member.seconds_since_heard.toFixed(1)} s ago`,
      ];
      texts.forEach((text, column) => say(row.cells[column], text));
      mark(row.root, "class", member.rank === slowest && workers > 1 ? "slowest" : null);
      mark(row.cells[8], "data-tone", member.seconds_since_heard > SILENT ? "warn" : null);
      mark(row.cells[3], "data-phase", member.phase);
      row.button.disabled = !allowed;
    });
    this.table.hidden = members.length === 0;
    this.empty.hidden = members.length > 0;
    const rest = workers > members.length ? `the first ${integer(members.length)} of ${integer(workers)}; ` : "";
    const slow = slowest !== null && workers > 1 ? `the others waited longest for rank ${integer(slowest)}: ${seconds(Math.max(0, snapshot.lag_seconds))} in the last step` : "";
    say(byId("workers-note"), rest + slow);
  }
}
