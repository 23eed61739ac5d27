// The overview of the run: its state, its stages, and its most important numbers.

import { byId, el, setAttribute, setText } from "./dom.js";
import { displayName, formatDeadline, formatDuration, formatInteger, formatNumber, formatPercent } from "./format.js";

/** The tone (colour, see style.css) of each state of a run. */
const STATE_TONES = {
  running: "good", finished: "good", forming: "busy", waiting: "busy", paused: "warn", failed: "bad",
};

/** A label with a number and a note. */
class Tile {
  constructor(label) {
    this.value = el("dd", {});
    this.note = el("dd", { class: "tile-note" });
    this.label = el("dt", {}, label);
    this.root = el("div", { class: "tile" }, this.label, this.value, this.note);
  }

  show(value, note = "") {
    setText(this.value, value);
    setText(this.note, note);
  }
}

export class Overview {
  /** `onSelect` is called with the index of the stage that the user selects. */
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.step = el("b", { id: "step" });
    this.total = el("span", { class: "total" });
    this.remaining = el("p", { class: "remaining" });
    this.bar = el("progress", { "aria-label": "Steps of the stage", max: "1", value: "0" });
    this.stages = el("ol", { class: "stages", "aria-label": "Stages: select one to show its curves" });
    this.tiles = {
      score: new Tile("Best score"), reward: new Tile("Reward"), loss: new Tile("Loss"), throughput: new Tile("Throughput"),
      workers: new Tile("Workers"),
    };
    const tiles = el("dl", { class: "tiles" }, ...Object.values(this.tiles).map(({ root }) => root));
    const progress = el("div", { class: "progress" }, el("p", { class: "step" }, this.step, this.total), this.bar, this.remaining);
    byId("overview").append(this.stages, el("div", { class: "numbers" }, progress, tiles));
  }

  /**
   * Shows a snapshot. `selectedStage` is the stage whose curves are shown. `score` is the result of
   * `Evaluations.headline` for the current stage.
   */
  update(snapshot, selectedStage, score) {
    const { step, steps, stages, stage, state, reason, at } = snapshot;
    const completed = formatPercent(step / Math.max(1, steps));
    document.title = `${state === "running" ? `${completed} ` : `${state} · `}${snapshot.run}`;
    setText(byId("run"), snapshot.run);
    const badge = byId("state");
    setAttribute(badge, "data-tone", STATE_TONES[state] ?? "busy");
    setText(badge, reason ? `${state}: ${reason}` : state);
    setText(byId("version"), `dico ${snapshot.version} · generation ${formatInteger(snapshot.generation)}`);
    setText(this.step, formatInteger(step));
    setText(this.total, `of ${formatInteger(steps)} steps of ${stages[stage]?.name ?? `stage ${stage}`}`);
    setAttribute(this.bar, "max", Math.max(1, steps));
    setAttribute(this.bar, "value", step);
    const timeLeft = state === "running" ? formatDuration(snapshot.seconds_left) : null;
    const laterStages = stages.length - 1 - stage;
    const next = laterStages > 0 ? `, then ${laterStages === 1 ? "one more stage" : `${laterStages} more stages`}` : "";
    const deadline = formatDeadline(at + snapshot.seconds_left, at);
    const end = timeLeft ? `about ${timeLeft} left, until ${deadline}${next}` : state === "finished" ? "complete" : state;
    setText(this.remaining, `${completed} · ${end}`);
    this.showStages(snapshot, selectedStage);
    this.showTiles(snapshot, score);
  }

  showStages({ stages, stage, state }, selectedStage) {
    if (this.stages.children.length !== stages.length) {
      this.stages.replaceChildren(...stages.map(({ name }, index) => el("li", {},
        el("button", { type: "button", on: { click: () => this.onSelect(index) } },
          el("span", { class: "mark", "aria-hidden": "true" }), el("span", {}, name), el("small", {}), el("span", { class: "hidden" })))));
    }
    [...this.stages.querySelectorAll("button")].forEach((button, index) => {
      const { name, objective } = stages[index];
      const isDone = index < stage || state === "finished";
      const progress = isDone ? "done" : index === stage ? "current" : "pending";
      setAttribute(button, "data-progress", progress);
      setAttribute(button, "aria-pressed", String(index === selectedStage));
      setText(button.querySelector("small"), displayName(objective) === displayName(name) ? "" : displayName(objective));
      setText(button.querySelector(".hidden"), ` (${progress})`);
    });
  }

  showTiles(snapshot, score) {
    const { tiles } = this;
    tiles.score.root.hidden = !score;
    if (score) {
      setText(tiles.score.label, `${score.isBest ? "Best" : "Last"} ${displayName(score.metric)}`);
      tiles.score.show(formatNumber(score.value), score.note);
    }
    tiles.reward.root.hidden = !Number.isFinite(snapshot.reward);
    tiles.reward.show(formatNumber(snapshot.reward), "mean of chosen candidates");
    // A coordinator that has just started has no loss and no throughput yet.
    const hasSteps = snapshot.images_per_second > 0;
    tiles.loss.show(hasSteps ? formatNumber(snapshot.loss) : "–", "last step");
    const tokens = snapshot.tokens_per_second > 0 ? `, ${formatInteger(snapshot.tokens_per_second)} tokens/s` : "";
    tiles.throughput.show(hasSteps ? formatNumber(snapshot.images_per_second) : "–", `images/s${tokens}`);
    tiles.workers.show(formatInteger(snapshot.workers), `minimum ${formatInteger(snapshot.min_workers)}`);
  }
}
