// Captions of two evaluations side by side, with their images and scores.

import { get, isAnswered } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { displayName, formatInteger, formatNumber } from "./format.js";

/** Images per page: as many as the coordinator sends at once. */
const PAGE_SIZE = 12;
/**
 * A caption shows one score beside it: the first of these that it has. "details" is a metric of
 * synthetic data.
 */
const MAIN_SCORES = ["pac_s", "clip_s", "ref_pac_s", "ref_clip_s", "details"];

/** The main score of a caption; null if it has none. */
const mainScore = (caption) => {
  const name = MAIN_SCORES.find((score) => caption && score in caption.scores);
  return name ? { name, value: caption.scores[name] } : null;
};

/**
 * The words of a text, each with whether it is part of the longest common subsequence with another
 * text.
 */
function commonWords(text, other) {
  const [a, b] = [text.split(" "), other.split(" ")];
  const lengths = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const words = [];
  for (let i = 0, j = 0; i < a.length; i += 1) {
    while (j < b.length && a[i] !== b[j] && lengths[i][j + 1] === lengths[i][j]) j += 1;
    const isCommon = j < b.length && a[i] === b[j];
    words.push([a[i], isCommon]);
    if (isCommon) j += 1;
  }
  return words;
}

/** Longer texts are not compared, because the time is quadratic in the number of words. */
const MAX_COMPARED_WORDS = 120;

/** A text in which the words that another text does not have are marked. */
function highlightNewWords(text, other) {
  if (!other || text.split(" ").length > MAX_COMPARED_WORDS || other.split(" ").length > MAX_COMPARED_WORDS) return [text];
  const parts = [];
  for (const [word, isCommon] of commonWords(text, other)) {
    if (parts.at(-1)?.isCommon === isCommon) parts.at(-1).text += ` ${word}`;
    else parts.push({ isCommon, text: word });
  }
  return parts.flatMap((part, index) => [index ? " " : "", part.isCommon ? part.text : el("mark", {}, part.text)]);
}

/**
 * The main score of a caption. The tone shows whether it is better or worse than that of the other
 * caption.
 */
function scoreChip(caption, other) {
  const [own, otherScore] = [mainScore(caption), mainScore(other)];
  if (!own) return null;
  const tone = otherScore && otherScore.name === own.name && otherScore.value !== own.value ? (own.value > otherScore.value ? "good" : "bad") : null;
  return el("span", { class: "chip", "data-tone": tone }, `${displayName(own.name)} `, el("b", {}, formatNumber(own.value)));
}

const scoreList = (caption) => Object.entries(caption.scores).map(([name, value]) => `${displayName(name)} ${formatNumber(value)}`).join(", ");

function imageFrame({ image, index }, evaluation) {
  const frame = el("div", { class: "picture" });
  const picture = el("img", { src: `api/image?evaluation=${encodeURIComponent(evaluation)}&index=${index}`, alt: `Image ${image}`, loading: "lazy", decoding: "async" });
  picture.addEventListener("error", () => frame.replaceChildren(el("span", { class: "placeholder" }, image)));
  frame.append(picture);
  return frame;
}

/**
 * The card of an image. `before` and `after` are the ids of the compared evaluations, which may be
 * the same; `names` are their display names.
 */
function captionCard(item, { before, after }, names) {
  const line = (label, caption, other, side) => el("div", { class: `caption ${side}` },
    el("p", { class: "caption-heading" }, el("span", {}, label), scoreChip(caption, side === "after" ? other : null)),
    el("p", { class: "text" }, ...(side === "after" ? highlightNewWords(caption.text, other?.text) : [caption.text])));
  const details = el("details", {}, el("summary", {}, `${formatInteger(item.references.length)} reference${item.references.length === 1 ? "" : "s"}, all scores`),
    el("ul", {}, ...item.references.map((text) => el("li", {}, text))),
    item.before && before !== after ? el("p", {}, el("b", {}, `${names.before}: `), scoreList(item.before)) : null,
    el("p", {}, el("b", {}, `${names.after}: `), scoreList(item.after)));
  return el("li", { class: "card" }, imageFrame(item, after),
    el("div", { class: "card-text" }, el("h3", {}, item.image),
      item.before && before !== after ? line(names.before, item.before, null, "before") : null,
      line(names.after, item.after, before === after ? null : item.before, "after"), details));
}

export class Captions {
  constructor(evaluations) {
    this.evaluations = evaluations;
    /** The ids of the evaluations that the user selected; null for the default ones. */
    this.selection = { before: null, after: null };
    /** The index of the first image of the page. */
    this.offset = 0;
    /** Identifies the captions that are shown or were requested: see `show`. */
    this.shownKey = null;
    this.selects = {};
    const createSelect = (side, label) => {
      this.selects[side] = el("select", { id: `captions-${side}`, on: { change: (event) => this.select(side, event.target.value) } });
      return [el("label", { for: `captions-${side}` }, label), this.selects[side]];
    };
    this.selectors = byId("compared");
    this.selectors.append(...createSelect("before", "Before"), ...createSelect("after", "After"));
    this.selectors.hidden = true;
    this.previous = el("button", { type: "button", on: { click: () => this.turnPage(-PAGE_SIZE) } }, "Previous");
    this.next = el("button", { type: "button", on: { click: () => this.turnPage(PAGE_SIZE) } }, "Next");
    this.pageLabel = el("span", { "aria-live": "polite" });
    byId("pages").append(this.previous, this.pageLabel, this.next);
  }

  select(side, id) {
    this.selection[side] = id;
    this.show();
  }

  turnPage(by) {
    this.offset = Math.max(0, this.offset + by);
    this.show();
  }

  /**
   * Updates the selectors with the present evaluations. If `curvesVersion` has changed, the run may
   * have given up steps, and the captions are loaded again.
   */
  update(stage, curvesVersion) {
    this.curvesVersion = curvesVersion;
    const defaults = this.evaluations.defaultComparison(stage);
    this.selectors.hidden = !defaults;
    byId("captions-empty").hidden = Boolean(defaults);
    if (!defaults) return;
    const ids = new Set(this.evaluations.list.map(({ id }) => id));
    for (const side of ["before", "after"]) {
      if (!ids.has(this.selection[side])) this.selection[side] = null;
      const options = this.evaluations.list.map((evaluation) => el("option", { value: evaluation.id }, this.evaluations.name(evaluation)));
      const selected = this.selection[side] ?? defaults[side].id;
      this.selects[side].replaceChildren(...options);
      this.selects[side].value = selected;
    }
    this.show();
  }

  /** Loads and shows the captions of the selected evaluations, unless they are shown already. */
  async show() {
    const compared = { before: this.selects.before.value, after: this.selects.after.value };
    const key = JSON.stringify([this.curvesVersion, compared, this.offset]);
    if (key === this.shownKey) return;
    this.shownKey = key;
    let captions;
    const path = `captions?before=${compared.before}&after=${compared.after}&offset=${this.offset}`;
    if (!await isAnswered(async () => { captions = await get(path); })) {
      // The next update requests the captions again.
      if (this.shownKey === key) this.shownKey = null;
      return;
    }
    // Ignore the answer if the user has selected other evaluations meanwhile.
    if (this.shownKey !== key) return;
    // If these evaluations have fewer images than the previous ones, go to the first page.
    if (this.offset > 0 && this.offset >= captions.images) {
      this.offset = 0;
      this.show();
      return;
    }
    const name = (id) => this.evaluations.name(this.evaluations.list.find((evaluation) => evaluation.id === id));
    const names = { before: name(compared.before), after: name(compared.after) };
    byId("captions").replaceChildren(...captions.items.map((item) => captionCard(item, compared, names)));
    const last = this.offset + captions.items.length;
    setText(this.pageLabel, captions.images ? `${formatInteger(this.offset + 1)}–${formatInteger(last)} of ${formatInteger(captions.images)} images` : "no images");
    this.previous.disabled = this.offset === 0;
    this.next.disabled = last >= captions.images;
    byId("pages").hidden = captions.images <= PAGE_SIZE && this.offset === 0;
  }
}
