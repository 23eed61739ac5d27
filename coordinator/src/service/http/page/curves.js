// The curves of a stage.

import { answered } from "./api.js";
import { Chart } from "./chart.js";
import { Course } from "./course.js";
import { byId, el, mark, say } from "./dom.js";
import { integer, number, percent, seconds } from "./format.js";

const one = (series) => [{ series, tone: "blue" }];
const quantiles = (of, tone) => [
  { low: `${of}.p25`, high: `${of}.p75`, tone },
  { low: `${of}.p05`, high: `${of}.p95`, tone, outline: true },
];

const CHARTS = [
  {
    title: "Reward", large: true, format: number,
    help: "Rewards of each image's best candidate (chosen) and of the others (rejected): median, middle half, and between which 90 % lie",
    lines: [
      { series: "reward_chosen.p50", label: "chosen", tone: "blue" },
      { series: "reward_rejected.p50", label: "rejected", tone: "orange", dashed: true },
    ],
    bands: [...quantiles("reward_rejected", "orange"), ...quantiles("reward_chosen", "blue")],
  },
  { title: "Loss", large: true, lines: one("loss"), format: number, help: "Loss per image or token" },
  { title: "Reward margin", lines: one("reward_margin"), format: number, help: "Reward of the best candidate minus the mean of the others" },
  { title: "Implicit accuracy", lines: one("implicit_accuracy"), format: percent, help: "Share of images whose implicit reward prefers the best candidate" },
  { title: "KL to the reference", lines: one("kl"), format: number, help: "Estimate of KL(policy || reference) per token, in nats" },
  { title: "Gamma entropy", lines: one("gamma_entropy"), format: number, help: "Mean entropy of DiCO's weights over the rejected candidates, in nats" },
  { title: "Caption length", lines: one("caption_length"), format: number, help: "Mean tokens of a candidate" },
  { title: "Repetition", lines: one("repetition"), format: percent, help: "Mean share of a candidate's tokens that repeat an earlier one" },
  { title: "Gradient norm", lines: one("gradient_norm"), format: number, help: "Before clipping" },
  { title: "Learning rate", lines: one("learning_rate"), format: number, help: "Of the update" },
  { title: "Images a second", lines: one("images_per_second"), format: number, help: "Over all workers" },
  { title: "Step time", lines: one("seconds"), format: seconds, help: "Seconds of a step on the slowest worker" },
  { title: "All-reduce", lines: one("all_reduce_seconds"), format: seconds, help: "Longest time that a worker spent in the all-reduce" },
  { title: "Lag of the slowest", lines: one("lag_seconds"), format: seconds, help: "How much longer than the average of the others the slowest worker computed" },
];
/** Points of a curve: more would only be noise. */
const POINTS = { wide: 128, narrow: 72 };
/** Width of a window, in pixels, below which it is narrow. */
const NARROW = 704;
const SPANS = [["whole", "Whole stage"], ["recent", "Last 512 steps"]];

export class Curves {
  constructor() {
    this.charts = CHARTS.map((chart) => new Chart(chart));
    byId("charts").append(...this.charts.map(({ root }) => root));
    this.span = "whole";
    this.course = null;
    this.busy = false;
    this.spans = SPANS.map(([span, label]) => el("button", {
      type: "button", "aria-pressed": String(span === this.span), on: { click: () => this.choose(span) },
    }, label));
    byId("spans").append(...this.spans);
  }

  choose(span) {
    this.span = span;
    this.spans.forEach((button, index) => mark(button, "aria-pressed", String(SPANS[index][0] === span)));
    this.update(this.snapshot, this.stage, this.selected);
  }

  /**
   * Shows a stage as of a look at the run, with a mark at the step of the state that was selected, if one was. One question at a
   * time; what comes meanwhile is asked for afterwards.
   */
  async update(snapshot, stage, selected) {
    const moved = selected !== this.selected;
    [this.snapshot, this.stage, this.selected] = [snapshot, stage, selected];
    if (this.busy || !snapshot) return;
    this.busy = true;
    if (this.course?.stage !== stage || this.course.span !== this.span) this.course = new Course(stage, this.span);
    const { course } = this;
    let changed = false;
    try {
      // Without an answer the next look at the run asks again; the header says that the coordinator is away.
      await answered(async () => { changed = await course.refresh(snapshot.curves); });
    } finally {
      this.busy = false;
    }
    const wanted = course.stage === this.stage && course.span === this.span;
    if (!wanted) this.update(this.snapshot, this.stage, this.selected);
    else if (changed || moved) this.draw(course);
  }

  draw(course) {
    const some = course.first.length > 0;
    byId("charts").hidden = !some;
    byId("charts-empty").hidden = some;
    const thin = course.thin(innerWidth < NARROW ? POINTS.narrow : POINTS.wide);
    thin.selected = this.selected;
    this.charts.forEach((chart) => chart.draw(thin));
    const { name } = this.snapshot.stages[course.stage];
    const steps = Math.max(...thin.last.map((last, index) => last - thin.first[index] + 1), 1);
    const buckets = steps > 1 ? `. A point is the mean of ${integer(steps)} steps, and what is shaded around it their least and greatest` : "";
    const selected = this.selected === null ? "" : ` The stage ended with its state at step ${integer(this.selected)}, marked by a line.`;
    say(byId("charts-note"), some ? `Stage ${name}, steps ${integer(course.first[0])} to ${integer(course.last.at(-1))}${buckets}.${selected}` : "");
  }
}
