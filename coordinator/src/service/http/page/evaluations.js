// The table of scores: a row for each metric, with its scores in the first, the last and the best
// evaluation.

import { get } from "./api.js";
import { sparkline } from "./chart.js";
import { byId, el, setText } from "./dom.js";
import { displayName, formatInteger, formatNumber } from "./format.js";

/** The metrics that are listed first, in this order. */
const MAIN_METRICS = ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s", "cider", "spice", "meteor", "rouge_l", "bleu_4", "retrieval_r1"];

const sortOrder = (name) => (MAIN_METRICS.includes(name) ? MAIN_METRICS.indexOf(name) : MAIN_METRICS.length);

export class Evaluations {
  constructor() {
    /** Evaluations of generated captions, in the order of the run. */
    this.list = [];
    /** The last evaluation of the reference captions; null if there is none. */
    this.references = null;
    /**
     * For each metric, whether a "higher" or a "lower" score is better. Metrics without a better
     * direction are absent.
     */
    this.betterDirections = {};
  }

  async refresh(snapshot) {
    const { evaluations, better: betterDirections } = await get("evaluations");
    [this.betterDirections, this.stages] = [betterDirections, snapshot.stages];
    // A contrastive stage trains the evaluator and generates no captions. Its evaluations score the
    // reference captions of the validation split, each against the others of its image.
    const isContrastive = ({ stage }) => this.stages[stage]?.objective === "contrastive";
    this.references = evaluations.findLast(isContrastive) ?? null;
    this.list = evaluations.filter((evaluation) => !isContrastive(evaluation));
    this.draw();
  }

  /**
   * The evaluation of the checkpoint that a stage ended with, if the stage has later evaluations;
   * null if the stage has not ended, or ended with its last checkpoint. The coordinator marks the
   * later evaluations as `not_selected`.
   */
  earlyEnd(stage) {
    const stageEvaluations = this.list.filter((evaluation) => evaluation.stage === stage);
    const hasLaterEvaluations = stageEvaluations.some((evaluation) => evaluation.not_selected);
    return hasLaterEvaluations ? stageEvaluations.findLast((evaluation) => !evaluation.not_selected) ?? null : null;
  }

  /** The display name of an evaluation: stage and step. */
  name({ stage, step }) {
    return `${this.stages[stage]?.name ?? stage} ${formatInteger(step)}`;
  }

  /**
   * The index of the evaluation in `list` with the best score of a metric; null if the metric has
   * no better direction, or no evaluation has a score.
   */
  bestIndex(list, metric) {
    const direction = this.betterDirections[metric];
    if (!direction) return null;
    let best = null;
    list.forEach(({ metrics }, index) => {
      const value = metrics[metric];
      const bestValue = best === null ? null : list[best].metrics[metric];
      if (Number.isFinite(value) && (bestValue === null || (direction === "higher" ? value > bestValue : value < bestValue))) best = index;
    });
    return best;
  }

  /**
   * The metric by which a stage selects its best checkpoint. If the run file names none, the first
   * main metric that the evaluations have.
   */
  metric(stage) {
    const configured = this.stages?.[stage]?.metric;
    const available = Object.keys(this.list.at(-1)?.metrics ?? {});
    return configured ?? MAIN_METRICS.find((name) => available.includes(name)) ?? null;
  }

  /**
   * The best score of a stage for the overview; the last score if the metric has no better
   * direction. Null if the stage has no score.
   */
  headline(stage) {
    const list = this.list.filter((evaluation) => evaluation.stage === stage);
    const metric = this.metric(stage);
    if (!list.length || !metric) return null;
    const best = this.bestIndex(list, metric) ?? list.length - 1;
    const value = list[best].metrics[metric];
    if (!Number.isFinite(value)) return null;
    const note = list.length > 1 ? `at step ${formatInteger(list[best].step)}; last ${formatNumber(list.at(-1).metrics[metric])}` : `at step ${formatInteger(list[best].step)}`;
    return { metric, value, note, isBest: this.betterDirections[metric] !== undefined };
  }

  /**
   * The two evaluations whose captions are compared by default: the last one before the stage, and
   * the best one of the stage. If the stage has none, those of all stages count. Null without
   * evaluations.
   */
  defaultComparison(stage) {
    const stageEvaluations = this.list.filter((evaluation) => evaluation.stage === stage);
    const evaluations = stageEvaluations.length ? stageEvaluations : this.list;
    if (!evaluations.length) return null;
    const metric = this.metric(evaluations.at(-1).stage);
    const after = evaluations[(metric && this.bestIndex(evaluations, metric)) ?? evaluations.length - 1];
    const before = this.list.findLast((evaluation) => evaluation.stage < after.stage) ?? this.list[0];
    // If the first evaluation is the best one, the last one is compared with it.
    return { before, after: after === before ? evaluations.at(-1) : after };
  }

  draw() {
    const { references } = this;
    const all = references ? [references, ...this.list] : this.list;
    const names = [...new Set(all.flatMap(({ metrics }) => Object.keys(metrics)))];
    names.sort((a, b) => sortOrder(a) - sortOrder(b) || a.localeCompare(b));
    const earlyEnds = (this.stages ?? []).map((_, stage) => this.earlyEnd(stage)).filter(Boolean);
    const endNotes = earlyEnds.map((evaluation) => `; stage ended with the checkpoint of ${this.name(evaluation)}`).join("");
    setText(byId("evaluations-note"), this.list.length ? `${formatInteger(this.list.length)} evaluation${this.list.length === 1 ? "" : "s"}, from ${this.name(this.list[0])} to ${this.name(this.list.at(-1))}${endNotes}` : "");
    if (!all.length) {
      byId("evaluations").replaceChildren(el("p", { class: "empty" }, "No evaluation yet."));
      return;
    }
    const headings = ["Metric", "Trend", ...(references ? ["References"] : []), "First", "Last", "Best", "Best at"].map((name) => el("th", {
      scope: "col", class: name === "Metric" || name === "Trend" ? "" : `number ${name.toLowerCase().replace("best at", "at")}`,
      title: name === "References" ? "The reference captions, each scored against the others of its image" : null,
    }, name));
    const rows = names.map((name) => {
      const values = this.list.map(({ metrics }) => metrics[name] ?? null);
      const scores = values.filter((value) => value !== null);
      const best = this.bestIndex(this.list, name);
      const [first, last] = [scores[0], scores.at(-1)];
      const direction = this.betterDirections[name];
      const change = direction && scores.length > 1 && first !== last ? ((last > first) === (direction === "higher") ? "good" : "bad") : null;
      const arrow = change ? el("span", { class: "arrow", "data-tone": change }, last > first ? "▲" : "▼", el("span", { class: "hidden" }, change === "good" ? " better than first" : " worse than first")) : null;
      return el("tr", {},
        el("th", { scope: "row" }, displayName(name)), el("td", {}, sparkline(values, best)),
        references ? el("td", { class: "number" }, formatNumber(references.metrics[name])) : null,
        el("td", { class: "number first" }, formatNumber(first)), el("td", { class: "number" }, arrow, " ", formatNumber(last)),
        el("td", { class: "number" }, best === null ? "–" : el("b", {}, formatNumber(values[best]))),
        el("td", { class: "number at" }, best === null ? "" : this.name(this.list[best])));
    });
    byId("evaluations").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...headings)), el("tbody", {}, ...rows)));
  }
}
