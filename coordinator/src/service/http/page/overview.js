// How the run stands: its state, its stages, and the numbers that matter most.

import { byId, el, mark, say } from "./dom.js";
import { duration, integer, number, percent, when, words } from "./format.js";

const STATES = {
  running: "good", finished: "good", forming: "busy", waiting: "busy", paused: "warn", failed: "bad",
};

class Tile {
  constructor(label) {
    this.value = el("dd", {});
    this.more = el("dd", { class: "more" });
    this.label = el("dt", {}, label);
    this.root = el("div", { class: "tile" }, this.label, this.value, this.more);
  }

  show(value, more = "") {
    say(this.value, value);
    say(this.more, more);
  }
}

export class Overview {
  /** `choose` is called with the stage that somebody wants to see. */
  constructor(choose) {
    this.choose = choose;
    this.step = el("b", { id: "step" });
    this.of = el("span", { class: "of" });
    this.left = el("p", { class: "left" });
    this.bar = el("progress", { "aria-label": "Steps of the stage", max: "1", value: "0" });
    this.stages = el("ol", { class: "stages", "aria-label": "Stages: choose whose curves are shown" });
    this.tiles = { score: new Tile("Best score"), reward: new Tile("Reward"), loss: new Tile("Loss"), speed: new Tile("Images a second"), workers: new Tile("Workers") };
    const tiles = el("dl", { class: "tiles" }, ...Object.values(this.tiles).map(({ root }) => root));
    const progress = el("div", { class: "progress" }, el("p", { class: "step" }, this.step, this.of), this.bar, this.left);
    byId("overview").append(this.stages, el("div", { class: "numbers" }, progress, tiles));
  }

  update(snapshot, shown, score) {
    const { step, steps, stages, stage, state, reason, at } = snapshot;
    document.title = `${state === "running" ? `${percent(step / Math.max(1, steps))} ` : `${state} · `}${snapshot.run}`;
    say(byId("run"), snapshot.run);
    const badge = byId("state");
    mark(badge, "data-tone", STATES[state] ?? "busy");
    say(badge, reason ? `${state}: ${reason}` : state);
    say(byId("version"), `dico ${snapshot.version} · generation ${integer(snapshot.generation)}`);
    say(this.step, integer(step));
    say(this.of, `of ${integer(steps)} steps of ${stages[stage]?.name ?? `stage ${stage}`}`);
    mark(this.bar, "max", Math.max(1, steps));
    mark(this.bar, "value", step);
    const left = state === "running" ? duration(snapshot.seconds_left) : null;
    const later = stages.length - 1 - stage;
    const after = later > 0 ? `, then ${later === 1 ? "one more stage" : `${later} more stages`}` : "";
    const end = left ? `about ${left} left, until ${when(at + snapshot.seconds_left, at)}${after}` : state === "finished" ? "complete" : state;
    say(this.left, `${percent(step / Math.max(1, steps))} · ${end}`);
    this.showStages(snapshot, shown);
    this.showTiles(snapshot, score);
  }

  showStages({ stages, stage, state }, shown) {
    if (this.stages.children.length !== stages.length) {
      this.stages.replaceChildren(...stages.map(({ name, objective }, index) => el("li", {},
        el("button", { type: "button", on: { click: () => this.choose(index) } },
          el("span", { class: "mark", "aria-hidden": "true" }), el("span", {}, name), el("small", {}), el("span", { class: "hidden" })))));
    }
    [...this.stages.querySelectorAll("button")].forEach((button, index) => {
      const { name, objective } = stages[index];
      const done = index < stage || state === "finished";
      const at = done ? "done" : index === stage ? "now" : "later";
      mark(button, "data-at", at);
      mark(button, "aria-pressed", String(index === shown));
      say(button.querySelector("small"), words(objective) === words(name) ? "" : words(objective));
      say(button.querySelector(".hidden"), ` (${at})`);
    });
  }

  showTiles(snapshot, score) {
    const { score: best, reward, loss, speed, workers } = this.tiles;
    best.root.hidden = !score;
    if (score) {
      say(best.label, `${score.best ? "Best" : "Last"} ${words(score.metric)}`);
      best.show(number(score.value), score.more);
    }
    reward.root.hidden = !Number.isFinite(snapshot.reward);
    reward.show(number(snapshot.reward), "of the chosen, mean");
    // A coordinator that was just started has seen no step yet.
    loss.show(snapshot.images_per_second > 0 ? number(snapshot.loss) : "–", "last step");
    const tokens = snapshot.tokens_per_second > 0 ? `${integer(snapshot.tokens_per_second)} tokens/s` : "";
    speed.show(snapshot.images_per_second > 0 ? number(snapshot.images_per_second) : "–", tokens);
    workers.show(integer(snapshot.workers), `at least ${integer(snapshot.min_workers)} needed`);
  }
}
