// Captions of two evaluations side by side, with their images and scores.

import { answered, get } from "./api.js";
import { byId, el, say } from "./dom.js";
import { integer, number, words } from "./format.js";

const PAGE = 12;
/** By which of a caption's scores it is judged. */
const SCORES = ["pac_s", "clip_s", "ref_pac_s", "ref_clip_s", "details"];

const score = (caption) => {
  const name = SCORES.find((known) => caption && known in caption.scores);
  return name ? { name, value: caption.scores[name] } : null;
};

/** The words of a text, and which of them another text has in the same order. */
function common(text, other) {
  const [a, b] = [text.split(" "), other.split(" ")];
  const longest = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const kept = [];
  for (let i = 0, j = 0; i < a.length; i += 1) {
    while (j < b.length && a[i] !== b[j] && longest[i][j + 1] === longest[i][j]) j += 1;
    const same = j < b.length && a[i] === b[j];
    kept.push([a[i], same]);
    if (same) j += 1;
  }
  return kept;
}

const LONGEST = 120;

/** A text whose words that another lacks are marked. */
function marked(text, other) {
  if (!other || text.split(" ").length > LONGEST || other.split(" ").length > LONGEST) return [text];
  const parts = [];
  for (const [word, same] of common(text, other)) {
    if (parts.at(-1)?.same === same) parts.at(-1).text += ` ${word}`;
    else parts.push({ same, text: word });
  }
  return parts.flatMap((part, index) => [index ? " " : "", part.same ? part.text : el("mark", {}, part.text)]);
}

function chip(caption, other) {
  const [own, its] = [score(caption), score(other)];
  if (!own) return null;
  const tone = its && its.name === own.name && its.value !== own.value ? (own.value > its.value ? "good" : "bad") : null;
  return el("span", { class: "chip", "data-tone": tone }, `${words(own.name)} `, el("b", {}, number(own.value)));
}

const scores = (caption) => Object.entries(caption.scores).map(([name, value]) => `${words(name)} ${number(value)}`).join(", ");

function picture({ image, index }, evaluation) {
  const frame = el("div", { class: "picture" });
  const shown = el("img", { src: `api/image?evaluation=${encodeURIComponent(evaluation)}&index=${index}`, alt: `Image ${image}`, loading: "lazy", decoding: "async" });
  shown.addEventListener("error", () => frame.replaceChildren(el("span", { class: "placeholder" }, image)));
  frame.append(shown);
  return frame;
}

function card(item, { before, after }, names) {
  const line = (label, caption, other, order) => el("div", { class: `caption ${order}` },
    el("p", { class: "of" }, el("span", {}, label), chip(caption, order === "after" ? other : null)),
    el("p", { class: "text" }, ...(order === "after" ? marked(caption.text, other?.text) : [caption.text])));
  const details = el("details", {}, el("summary", {}, `${integer(item.references.length)} reference${item.references.length === 1 ? "" : "s"}, all scores`),
    el("ul", {}, ...item.references.map((text) => el("li", {}, text))),
    item.before && before !== after ? el("p", {}, el("b", {}, `${names.before}: `), scores(item.before)) : null,
    el("p", {}, el("b", {}, `${names.after}: `), scores(item.after)));
  return el("li", { class: "card" }, picture(item, after),
    el("div", { class: "said" }, el("h3", {}, item.image),
      item.before && before !== after ? line(names.before, item.before, null, "before") : null,
      line(names.after, item.after, before === after ? null : item.before, "after"), details));
}

export class Captions {
  constructor(evaluations) {
    this.evaluations = evaluations;
    this.chosen = { before: null, after: null };
    this.from = 0;
    this.shown = null;
    this.selects = {};
    const select = (order, label) => {
      this.selects[order] = el("select", { id: `captions-${order}`, on: { change: (event) => this.choose(order, event.target.value) } });
      return [el("label", { for: `captions-${order}` }, label), this.selects[order]];
    };
    this.choice = byId("compared");
    this.choice.append(...select("before", "Before"), ...select("after", "After"));
    this.choice.hidden = true;
    this.back = el("button", { type: "button", on: { click: () => this.turn(-PAGE) } }, "Previous");
    this.onward = el("button", { type: "button", on: { click: () => this.turn(PAGE) } }, "Next");
    this.place = el("span", { "aria-live": "polite" });
    byId("pages").append(this.back, this.place, this.onward);
  }

  choose(order, id) {
    this.chosen[order] = id;
    this.show();
  }

  turn(by) {
    this.from = Math.max(0, this.from + by);
    this.show();
  }

  /** Takes in that there are other evaluations; of another `era` what is shown may not hold any more. */
  update(stage, era) {
    this.era = era;
    const usual = this.evaluations.usual(stage);
    this.choice.hidden = !usual;
    byId("captions-empty").hidden = Boolean(usual);
    if (!usual) return;
    const known = new Set(this.evaluations.list.map(({ id }) => id));
    for (const order of ["before", "after"]) {
      if (!known.has(this.chosen[order])) this.chosen[order] = null;
      const options = this.evaluations.list.map((evaluation) => el("option", { value: evaluation.id }, this.evaluations.name(evaluation)));
      const held = this.chosen[order] ?? usual[order].id;
      this.selects[order].replaceChildren(...options);
      this.selects[order].value = held;
    }
    this.show();
  }

  async show() {
    const compared = { before: this.selects.before.value, after: this.selects.after.value };
    const asked = JSON.stringify([this.era, compared, this.from]);
    if (asked === this.shown) return;
    this.shown = asked;
    let captions;
    const path = `captions?before=${compared.before}&after=${compared.after}&from=${this.from}`;
    if (!await answered(async () => { captions = await get(path); })) {
      // Asked again when there is news.
      if (this.shown === asked) this.shown = null;
      return;
    }
    // Somebody has chosen others meanwhile.
    if (this.shown !== asked) return;
    // These evaluations have fewer images than those that were leafed through.
    if (this.from > 0 && this.from >= captions.images) {
      this.from = 0;
      this.show();
      return;
    }
    const name = (id) => this.evaluations.name(this.evaluations.list.find((evaluation) => evaluation.id === id));
    const names = { before: name(compared.before), after: name(compared.after) };
    byId("captions").replaceChildren(...captions.items.map((item) => card(item, compared, names)));
    const last = this.from + captions.items.length;
    say(this.place, captions.images ? `${integer(this.from + 1)}–${integer(last)} of ${integer(captions.images)} images` : "no images");
    this.back.disabled = this.from === 0;
    this.onward.disabled = last >= captions.images;
    byId("pages").hidden = captions.images <= PAGE && this.from === 0;
  }
}
