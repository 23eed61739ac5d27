// Charts in SVG: lines of means with bands between minimum and maximum, and bands between
// quantiles.

import { el, setAttribute, svg } from "./dom.js";
import { formatInteger, formatTick } from "./format.js";
import { axisTicks, hasValue, valueRange } from "./scale.js";

/**
 * Margins of the plot, in pixels: on the left for the numbers of the axis, on the right for the dot
 * at the last value.
 */
const MARGIN_TOP = 6;
const MARGIN_BOTTOM = 18;
const MARGIN_LEFT = 44;
const MARGIN_RIGHT = 5;
/** Heights of charts, in pixels. */
const LARGE_HEIGHT = 208;
const SMALL_HEIGHT = 92;

/**
 * The pointer that all charts share. `step` is the last step of the bucket that it points at, or
 * null.
 */
export const pointer = {
  step: null,
  charts: new Set(),
  moveTo(step) {
    if (step === this.step) return;
    this.step = step;
    for (const chart of this.charts) chart.showValues();
  },
};

/**
 * The indices at which all columns have values, as groups of consecutive ones. A curve has a gap
 * between two groups.
 */
function indexGroups(...columns) {
  const groups = [];
  let group = [];
  for (let index = 0; index < columns[0].length; index += 1) {
    if (columns.every((column) => hasValue(column[index]))) {
      group.push(index);
    } else if (group.length) {
      groups.push(group);
      group = [];
    }
  }
  if (group.length) groups.push(group);
  return groups;
}

export class Chart {
  /**
   * `help` is the tooltip of the title. `lines` are `{ series, label, tone, dashed }`. `bands` are
   * `{ low, high, tone, outline }`, where `low` and `high` are series; with `outline` only their
   * edges are drawn. `format` formats values.
   */
  constructor({ title, help, lines, bands = [], format, large = false }) {
    Object.assign(this, { title, lines, bands, format, curves: null, size: [0, large ? LARGE_HEIGHT : SMALL_HEIGHT], index: null });
    this.values = el("span", { class: "values" });
    this.plot = svg("svg", { "aria-hidden": "true", height: this.size[1] });
    this.slider = el("div", {
      class: "plot", role: "slider", tabindex: "0", "aria-label": `${title} by step`, "aria-valuemin": "0",
      on: {
        pointermove: (event) => this.pointAt(event.offsetX),
        pointerdown: (event) => this.pointAt(event.offsetX),
        pointerleave: () => pointer.moveTo(null),
        blur: () => pointer.moveTo(null),
        keydown: (event) => this.handleKey(event),
      },
    }, this.plot);
    const caption = el("figcaption", {}, el("span", { class: "name", title: help }, title), this.values);
    this.root = el("figure", { class: large ? "chart large" : "chart" }, caption, this.slider);
    new ResizeObserver(([entry]) => {
      this.size[0] = Math.floor(entry.contentRect.width);
      this.draw(this.curves);
    }).observe(this.slider);
    pointer.charts.add(this);
  }

  /** Draws the curves of a stage. Hides the chart if they have none of its series. */
  draw(curves) {
    this.curves = curves;
    const isShown = Boolean(curves) && this.lines.some(({ series }) => curves.series[series]);
    this.root.hidden = !isShown;
    if (!isShown || this.size[0] === 0) return;
    const [width, height] = this.size;
    const column = (name) => curves.series[name]?.mean;
    const lines = this.lines.filter(({ series }) => column(series));
    const bands = this.bands.filter(({ low, high }) => column(low) && column(high));
    const withExtremes = lines.filter(({ series }) => curves.series[series].min);
    const extent = valueRange([
      ...lines.map(({ series }) => column(series)),
      ...bands.flatMap(({ low, high }) => [column(low), column(high)]),
      ...withExtremes.flatMap(({ series }) => [curves.series[series].min, curves.series[series].max]),
    ]);
    if (!extent) return;
    // The axis begins at the step before the first one.
    const [first, last] = [curves.first[0] - 1, curves.last.at(-1)];
    const x = (index) => MARGIN_LEFT + ((curves.last[index] - first) / Math.max(1, last - first)) * (width - MARGIN_LEFT - MARGIN_RIGHT);
    const y = (value) => MARGIN_TOP + (1 - (value - extent[0]) / (extent[1] - extent[0])) * (height - MARGIN_TOP - MARGIN_BOTTOM);
    const point = (index, value) => `${x(index).toFixed(1)} ${Math.max(-height, Math.min(2 * height, y(value))).toFixed(1)}`;
    const path = (values) => indexGroups(values).map((group) => `M${group.map((index) => point(index, values[index])).join("L")}`).join("");
    const area = (low, high) => indexGroups(low, high).map((group) => {
      const back = [...group].reverse();
      return `M${[...group.map((index) => point(index, high[index])), ...back.map((index) => point(index, low[index]))].join("L")}Z`;
    }).join("");
    const shapes = [];
    for (const value of axisTicks(extent, this.size[1] > 150 ? 4 : 3)) {
      const at = Math.round(y(value)) + 0.5;
      shapes.push(svg("line", { class: "grid", x1: MARGIN_LEFT, x2: width, y1: at, y2: at }));
      shapes.push(svg("text", { class: "tick", x: MARGIN_LEFT - 5, y: at + 3.5, "text-anchor": "end" }, formatTick(value)));
    }
    for (const { low, high, tone, outline } of bands) {
      if (outline) {
        shapes.push(svg("path", { class: `outline ${tone}`, d: path(column(low)) }), svg("path", { class: `outline ${tone}`, d: path(column(high)) }));
      } else {
        shapes.push(svg("path", { class: `band ${tone}`, d: area(column(low), column(high)) }));
      }
    }
    for (const { series, tone } of withExtremes) {
      shapes.push(svg("path", { class: `band ${tone}`, d: area(curves.series[series].min, curves.series[series].max) }));
    }
    for (const { series, tone, dashed } of lines) {
      const values = column(series);
      shapes.push(svg("path", { class: `line ${tone} ${dashed ? "dashed" : ""}`, d: path(values) }));
      const end = values.findLastIndex(hasValue);
      if (end >= 0) shapes.push(svg("circle", { class: `end ${tone}`, cx: x(end), cy: y(values[end]), r: 2.5 }));
    }
    // A vertical line marks the checkpoint that the stage ended with, if it is not its last one.
    const endIndex = curves.endStep === null ? -1 : curves.last.findIndex((step) => step >= curves.endStep);
    if (endIndex >= 0) shapes.push(svg("line", { class: "stage-end", x1: x(endIndex), x2: x(endIndex), y1: MARGIN_TOP, y2: height - MARGIN_BOTTOM }));
    shapes.push(svg("text", { class: "tick", x: MARGIN_LEFT, y: height - 4 }, formatInteger(curves.first[0])));
    shapes.push(svg("text", { class: "tick", x: width - 2, y: height - 4, "text-anchor": "end" }, formatInteger(last)));
    this.cursor = svg("line", { class: "cursor", y1: MARGIN_TOP, y2: height - MARGIN_BOTTOM, visibility: "hidden" });
    setAttribute(this.plot, "width", width);
    setAttribute(this.plot, "viewBox", `0 0 ${width} ${height}`);
    this.plot.replaceChildren(...shapes, this.cursor);
    this.x = x;
    setAttribute(this.slider, "aria-valuemax", curves.last.length - 1);
    this.showValues();
  }

  /** Shows the values at the pointer, or else the last values. */
  showValues() {
    const { curves } = this;
    if (!curves || this.root.hidden || !this.cursor) return;
    const length = curves.last.length;
    let index = pointer.step === null ? -1 : curves.last.findIndex((last) => last >= pointer.step);
    this.cursor.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index >= 0) {
      this.cursor.setAttribute("x1", this.x(index));
      this.cursor.setAttribute("x2", this.x(index));
    } else {
      index = length - 1;
    }
    this.index = index;
    const value = ({ series }) => curves.series[series]?.mean[index];
    const [from, to] = [curves.first[index], curves.last[index]];
    const steps = from === to ? `step ${formatInteger(to)}` : `steps ${formatInteger(from)}–${formatInteger(to)}`;
    const parts = this.lines.filter(({ series }) => curves.series[series]).map((line) => ({ ...line, text: this.format(value(line)) }));
    const spans = parts.map(({ label, tone, text }) => el("span", { class: `value ${tone}` }, label ? `${label} ` : "", el("b", {}, text)));
    if (pointer.step !== null) spans.unshift(el("span", { class: "steps" }, steps));
    this.values.replaceChildren(...spans);
    setAttribute(this.slider, "aria-valuenow", index);
    setAttribute(this.slider, "aria-valuetext", `${steps}: ${parts.map(({ label, text }) => `${label ?? ""} ${text}`.trim()).join(", ")}`);
  }

  /** Points at the bucket nearest to an offset in pixels. */
  pointAt(offset) {
    if (!this.curves?.last.length || !this.x) return;
    let [low, high] = [0, this.curves.last.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.x(middle) + this.x(middle + 1)) / 2 < offset) low = middle + 1;
      else high = middle;
    }
    pointer.moveTo(this.curves.last[low]);
  }

  handleKey(event) {
    const length = this.curves?.last.length ?? 0;
    const page = Math.max(1, Math.round(length / 10));
    const offsets = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: -length, End: length };
    if (event.key === "Escape") pointer.moveTo(null);
    if (!(event.key in offsets) || !length) return;
    event.preventDefault();
    const index = Math.min(length - 1, Math.max(0, (this.index ?? length - 1) + offsets[event.key]));
    pointer.moveTo(this.curves.last[index]);
  }
}

/**
 * A line without axes, for a row of a table, with dots at the last and the best value. `best` is an
 * index, or null.
 */
export function sparkline(values, best) {
  const [width, height, margin] = [104, 24, 4];
  const extent = valueRange([values]) ?? [0, 1];
  const x = (index) => margin + (index / Math.max(1, values.length - 1)) * (width - 2 * margin);
  const y = (value) => margin + (1 - (value - extent[0]) / (extent[1] - extent[0])) * (height - 2 * margin);
  const d = indexGroups(values).map((group) => `M${group.map((index) => `${x(index).toFixed(1)} ${y(values[index]).toFixed(1)}`).join("L")}`).join("");
  const dot = (index, name) => (hasValue(values[index]) ? svg("circle", { class: name, cx: x(index), cy: y(values[index]), r: 2.5 }) : null);
  return svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("path", { class: "line blue", d }), dot(values.length - 1, "end blue"), best === null ? null : dot(best, "best"));
}
