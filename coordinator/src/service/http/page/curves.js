// The charts of a stage.

import { isAnswered } from "./api.js";
import { Chart } from "./chart.js";
import { byId, el, setAttribute, setText } from "./dom.js";
import { formatInteger, formatNumber, formatPercent, formatSeconds } from "./format.js";
import { METRICS } from "./metrics.js";
import { StageCurves } from "./stage_curves.js";

/** A chart of one series, with its label and its definition in the catalogue of metrics. */
const chartOf = (series, format, options = {}) => ({
  title: METRICS[series].label, help: METRICS[series].definition, format, lines: [{ series, tone: "blue" }], ...options,
});
/** Bands between the quantiles of a distribution: interquartile range, and 5 % to 95 %. */
const quantileBands = (distribution, tone) => [
  { low: `${distribution}.p25`, high: `${distribution}.p75`, tone },
  { low: `${distribution}.p05`, high: `${distribution}.p95`, tone, outline: true },
];

const CHARTS = [
  {
    title: "Reward", large: true, format: formatNumber,
    help: "Rewards of each image's best candidate (chosen) and of the others (rejected): median, interquartile range, and 5 % to 95 % quantiles",
    lines: [
      { series: "reward_chosen.p50", label: "chosen", tone: "blue" },
      { series: "reward_rejected.p50", label: "rejected", tone: "orange", dashed: true },
    ],
    bands: [...quantileBands("reward_rejected", "orange"), ...quantileBands("reward_chosen", "blue")],
  },
  chartOf("loss", formatNumber, { large: true }),
  chartOf("reward_margin", formatNumber),
  chartOf("implicit_accuracy", formatPercent),
  chartOf("kl", formatNumber),
  chartOf("gamma_entropy", formatNumber),
  chartOf("caption_length", formatNumber),
  chartOf("repetition", formatPercent),
  chartOf("gradient_norm", formatNumber),
  chartOf("learning_rate", formatNumber),
  chartOf("images_per_second", formatNumber),
  chartOf("seconds", formatSeconds),
  chartOf("all_reduce_seconds", formatSeconds),
  chartOf("lag_seconds", formatSeconds),
];
/** Maximal number of points of a curve. More points would only show noise. */
const MAX_POINTS = { wide: 128, narrow: 72 };
/** Windows of fewer pixels are narrow. */
const NARROW_WIDTH = 704;
/** The ranges of steps that the coordinator offers, with their labels. */
const RANGES = [["full", "Whole stage"], ["recent", "Last 512 steps"]];

export class Curves {
  constructor() {
    this.charts = CHARTS.map((chart) => new Chart(chart));
    byId("charts").append(...this.charts.map(({ root }) => root));
    this.range = "full";
    this.curves = null;
    this.isLoading = false;
    this.rangeButtons = RANGES.map(([range, label]) => el("button", {
      type: "button", "aria-pressed": String(range === this.range), on: { click: () => this.selectRange(range) },
    }, label));
    byId("ranges").append(...this.rangeButtons);
  }

  selectRange(range) {
    this.range = range;
    this.rangeButtons.forEach((button, index) => setAttribute(button, "aria-pressed", String(RANGES[index][0] === range)));
    this.update(this.snapshot, this.stage, this.endStep);
  }

  /**
   * Shows the curves of a stage. `endStep` is the step of the checkpoint that the stage ended with,
   * if that is not its last checkpoint; otherwise null. There is one request at a time; an update
   * during a request takes effect after it.
   */
  async update(snapshot, stage, endStep) {
    const endStepChanged = endStep !== this.endStep;
    [this.snapshot, this.stage, this.endStep] = [snapshot, stage, endStep];
    if (this.isLoading || !snapshot) return;
    this.isLoading = true;
    if (this.curves?.stage !== stage || this.curves.range !== this.range) this.curves = new StageCurves(stage, this.range);
    const { curves } = this;
    let changed = false;
    try {
      // The next snapshot repeats a request that fails; the header shows that the coordinator does
      // not answer.
      await isAnswered(async () => { changed = await curves.refresh(snapshot.curves); });
    } finally {
      this.isLoading = false;
    }
    const isCurrent = curves.stage === this.stage && curves.range === this.range;
    if (!isCurrent) this.update(this.snapshot, this.stage, this.endStep);
    else if (changed || endStepChanged) this.draw(curves);
  }

  draw(curves) {
    const hasSteps = curves.first.length > 0;
    byId("charts").hidden = !hasSteps;
    byId("charts-empty").hidden = hasSteps;
    const shown = curves.downsample(innerWidth < NARROW_WIDTH ? MAX_POINTS.narrow : MAX_POINTS.wide);
    shown.endStep = this.endStep;
    this.charts.forEach((chart) => chart.draw(shown));
    const { name } = this.snapshot.stages[curves.stage];
    const steps = Math.max(...shown.last.map((last, index) => last - shown.first[index] + 1), 1);
    const points = steps > 1 ? `. Each point is the mean of ${formatInteger(steps)} steps; the shaded area is their minimum and maximum` : "";
    const endNote = this.endStep === null ? "" : ` The vertical line marks the checkpoint that the stage ended with, step ${formatInteger(this.endStep)}.`;
    setText(byId("charts-note"), hasSteps ? `Stage ${name}, steps ${formatInteger(curves.first[0])} to ${formatInteger(curves.last.at(-1))}${points}.${endNote}` : "");
  }
}
