// Evaluations: every score over the evaluations, and what is best of it.

import { get } from "./api.js";
import { spark } from "./chart.js";
import { byId, el, say } from "./dom.js";
import { integer, number, words } from "./format.js";

/** What people look at first. */
const FIRST = ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s", "cider", "spice", "meteor", "rouge_l", "bleu_4", "retrieval_r1"];

const place = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

export class Evaluations {
  constructor() {
    this.list = [];
    this.references = null;
    this.better = {};
  }

  async refresh(snapshot) {
    const { evaluations, better } = await get("evaluations");
    [this.better, this.stages] = [better, snapshot.stages];
    // A stage that trains the evaluator writes no captions: what it evaluates are the references, each against the others.
    const contrastive = ({ stage }) => this.stages[stage]?.objective === "contrastive";
    this.references = evaluations.findLast(contrastive) ?? null;
    this.list = evaluations.filter((evaluation) => !contrastive(evaluation));
    this.draw();
  }

  /** The evaluation of the state that a stage ended with although it was trained further, if so. */
  selected(stage) {
    const own = this.list.filter((evaluation) => evaluation.stage === stage);
    return own.some((evaluation) => evaluation.not_selected) ? own.findLast((evaluation) => !evaluation.not_selected) ?? null : null;
  }

  /** What an evaluation is called. */
  name({ stage, step }) {
    return `${this.stages[stage]?.name ?? stage} ${integer(step)}`;
  }

  /** The place of the best of some evaluations by a score; none if that is neither good nor bad. */
  best(list, metric) {
    const way = this.better[metric];
    if (!way) return null;
    let best = null;
    list.forEach(({ metrics }, index) => {
      const value = metrics[metric];
      const held = best === null ? null : list[best].metrics[metric];
      if (Number.isFinite(value) && (held === null || (way === "higher" ? value > held : value < held))) best = index;
    });
    return best;
  }

  /** The score by which a stage is judged. */
  metric(stage) {
    const named = this.stages?.[stage]?.metric;
    const known = Object.keys(this.list.at(-1)?.metrics ?? {});
    return named ?? FIRST.find((name) => known.includes(name)) ?? null;
  }

  /** What is said of the present stage on top of the page, if it was evaluated. */
  headline(stage) {
    const list = this.list.filter((evaluation) => evaluation.stage === stage);
    const metric = this.metric(stage);
    if (!list.length || !metric) return null;
    const best = this.best(list, metric) ?? list.length - 1;
    const value = list[best].metrics[metric];
    if (!Number.isFinite(value)) return null;
    const more = list.length > 1 ? `at step ${integer(list[best].step)}; last ${number(list.at(-1).metrics[metric])}` : `at step ${integer(list[best].step)}`;
    return { metric, value, more, best: this.better[metric] !== undefined };
  }

  /** The evaluations that captions are compared of, unless somebody chooses others: what went into the stage, and its best. */
  usual(stage) {
    const own = this.list.filter((evaluation) => evaluation.stage === stage);
    const last = own.length ? own : this.list;
    if (!last.length) return null;
    const metric = this.metric(last.at(-1).stage);
    const after = last[(metric && this.best(last, metric)) ?? last.length - 1];
    const before = this.list.findLast((evaluation) => evaluation.stage < after.stage) ?? this.list[0];
    // Where nothing is better than what it began with, the last says how it goes.
    return { before, after: after === before ? last.at(-1) : after };
  }

  draw() {
    const { references } = this;
    const all = references ? [references, ...this.list] : this.list;
    const names = [...new Set(all.flatMap(({ metrics }) => Object.keys(metrics)))];
    names.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
    const some = all.length > 0;
    const ends = (this.stages ?? []).map((_, stage) => this.selected(stage)).filter(Boolean);
    const selections = ends.map((evaluation) => `; ended with ${this.name(evaluation)}, the best state`).join("");
    say(byId("evaluations-note"), this.list.length ? `${integer(this.list.length)} so far, from ${this.name(this.list[0])} to ${this.name(this.list.at(-1))}${selections}` : "");
    if (!some) {
      byId("evaluations").replaceChildren(el("p", { class: "empty" }, "Nothing has been evaluated yet."));
      return;
    }
    const head = ["Score", "Course", ...(references ? ["People"] : []), "First", "Last", "Best", "Best at"].map((name) => el("th", {
      scope: "col", class: name === "Score" || name === "Course" ? "" : `number ${name.toLowerCase().replace("best at", "at")}`,
      title: name === "People" ? "The references, each scored against the others of its image" : null,
    }, name));
    const rows = names.map((name) => {
      const values = this.list.map(({ metrics }) => metrics[name] ?? null);
      const known = values.filter((value) => value !== null);
      const best = this.best(this.list, name);
      const [first, last] = [known[0], known.at(-1)];
      const way = this.better[name];
      const change = way && known.length > 1 && first !== last ? ((last > first) === (way === "higher") ? "good" : "bad") : null;
      const arrow = change ? el("span", { class: "arrow", "data-tone": change }, last > first ? "▲" : "▼", el("span", { class: "hidden" }, change === "good" ? " better than first" : " worse than first")) : null;
      return el("tr", {},
        el("th", { scope: "row" }, words(name)), el("td", {}, spark(values, best)),
        references ? el("td", { class: "number" }, number(references.metrics[name])) : null,
        el("td", { class: "number first" }, number(first)), el("td", { class: "number" }, arrow, " ", number(last)),
        el("td", { class: "number" }, best === null ? "–" : el("b", {}, number(values[best]))),
        el("td", { class: "number at" }, best === null ? "" : this.name(this.list[best])));
    });
    byId("evaluations").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)));
  }
}
