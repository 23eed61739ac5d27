// Charts in SVG: lines with the range of what they are the mean of, and bands between quantiles.

import { el, mark, say, svg } from "./dom.js";
import { integer, tick } from "./format.js";
import { present, range, ticks } from "./scale.js";

const TOP = 6;
const BOTTOM = 18;
/** Room for the numbers of the axis, and for the dot at the end. */
const AXIS = 44;
const END = 5;

/** The bucket that all charts point at: the last step in it, or none. */
export const pointer = {
  step: null,
  charts: new Set(),
  to(step) {
    if (step === this.step) return;
    this.step = step;
    for (const chart of this.charts) chart.point();
  },
};

/** Places of a column's values that follow each other without a gap. */
function runs(...columns) {
  const found = [];
  let run = [];
  for (let index = 0; index < columns[0].length; index += 1) {
    if (columns.every((column) => present(column[index]))) {
      run.push(index);
    } else if (run.length) {
      found.push(run);
      run = [];
    }
  }
  if (run.length) found.push(run);
  return found;
}

export class Chart {
  /**
   * `lines` are `{ series, label, tone, dashed, range }`, `bands` are `{ low, high, tone, outline }`; `format` is for values.
   */
  constructor({ title, help, lines, bands = [], format, large = false }) {
    Object.assign(this, { title, lines, bands, format, course: null, size: [0, large ? 208 : 92], index: null });
    this.values = el("span", { class: "values" });
    this.plot = svg("svg", { "aria-hidden": "true", height: this.size[1] });
    this.slider = el("div", {
      class: "plot", role: "slider", tabindex: "0", "aria-label": `${title} by step`, "aria-valuemin": "0",
      on: {
        pointermove: (event) => this.seek(event.offsetX),
        pointerdown: (event) => this.seek(event.offsetX),
        pointerleave: () => pointer.to(null),
        blur: () => pointer.to(null),
        keydown: (event) => this.key(event),
      },
    }, this.plot);
    const caption = el("figcaption", {}, el("span", { class: "name", title: help }, title), this.values);
    this.root = el("figure", { class: large ? "chart large" : "chart" }, caption, this.slider);
    new ResizeObserver(([entry]) => {
      this.size[0] = Math.floor(entry.contentRect.width);
      this.draw(this.course);
    }).observe(this.slider);
    pointer.charts.add(this);
  }

  /** Draws a course; hides the chart if that has nothing for it. */
  draw(course) {
    this.course = course;
    const shown = Boolean(course) && this.lines.some(({ series }) => course.series[series]);
    this.root.hidden = !shown;
    if (!shown || this.size[0] === 0) return;
    const [width, height] = this.size;
    const column = (name) => course.series[name]?.mean;
    const lines = this.lines.filter(({ series }) => column(series));
    const bands = this.bands.filter(({ low, high }) => column(low) && column(high));
    const ranged = lines.filter(({ series, range: wide }) => wide !== false && course.series[series].min);
    const extent = range([
      ...lines.map(({ series }) => column(series)),
      ...bands.flatMap(({ low, high }) => [column(low), column(high)]),
      ...ranged.flatMap(({ series }) => [course.series[series].min, course.series[series].max]),
    ]);
    if (!extent) return;
    const [first, last] = [course.first[0] - 1, course.last.at(-1)];
    const x = (index) => AXIS + ((course.last[index] - first) / Math.max(1, last - first)) * (width - AXIS - END);
    const y = (value) => TOP + (1 - (value - extent[0]) / (extent[1] - extent[0])) * (height - TOP - BOTTOM);
    const spot = (index, value) => `${x(index).toFixed(1)} ${Math.max(-height, Math.min(2 * height, y(value))).toFixed(1)}`;
    const path = (values) => runs(values).map((run) => `M${run.map((index) => spot(index, values[index])).join("L")}`).join("");
    const area = (low, high) => runs(low, high).map((run) => {
      const back = [...run].reverse();
      return `M${[...run.map((index) => spot(index, high[index])), ...back.map((index) => spot(index, low[index]))].join("L")}Z`;
    }).join("");
    const shapes = [];
    for (const value of ticks(extent, this.size[1] > 150 ? 4 : 3)) {
      const at = Math.round(y(value)) + 0.5;
      shapes.push(svg("line", { class: "grid", x1: AXIS, x2: width, y1: at, y2: at }));
      shapes.push(svg("text", { class: "tick", x: AXIS - 5, y: at + 3.5, "text-anchor": "end" }, tick(value)));
    }
    for (const { low, high, tone, outline } of bands) {
      if (outline) {
        shapes.push(svg("path", { class: `outline ${tone}`, d: path(column(low)) }), svg("path", { class: `outline ${tone}`, d: path(column(high)) }));
      } else {
        shapes.push(svg("path", { class: `band ${tone}`, d: area(column(low), column(high)) }));
      }
    }
    for (const { series, tone } of ranged) {
      shapes.push(svg("path", { class: `band ${tone}`, d: area(course.series[series].min, course.series[series].max) }));
    }
    for (const { series, tone, dashed } of lines) {
      const values = column(series);
      shapes.push(svg("path", { class: `line ${tone} ${dashed ? "dashed" : ""}`, d: path(values) }));
      const end = values.findLastIndex(present);
      if (end >= 0) shapes.push(svg("circle", { class: `end ${tone}`, cx: x(end), cy: y(values[end]), r: 2.5 }));
    }
    const selected = course.selected === null ? -1 : course.last.findIndex((step) => step >= course.selected);
    if (selected >= 0) shapes.push(svg("line", { class: "selected", x1: x(selected), x2: x(selected), y1: TOP, y2: height - BOTTOM }));
    shapes.push(svg("text", { class: "tick", x: AXIS, y: height - 4 }, integer(course.first[0])));
    shapes.push(svg("text", { class: "tick", x: width - 2, y: height - 4, "text-anchor": "end" }, integer(last)));
    this.rule = svg("line", { class: "rule", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    mark(this.plot, "width", width);
    mark(this.plot, "viewBox", `0 0 ${width} ${height}`);
    this.plot.replaceChildren(...shapes, this.rule);
    this.x = x;
    mark(this.slider, "aria-valuemax", course.last.length - 1);
    this.point();
  }

  /** Shows the values that are pointed at, or else the last. */
  point() {
    const { course } = this;
    if (!course || this.root.hidden || !this.rule) return;
    const length = course.last.length;
    let index = pointer.step === null ? -1 : course.last.findIndex((last) => last >= pointer.step);
    this.rule.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index >= 0) {
      this.rule.setAttribute("x1", this.x(index));
      this.rule.setAttribute("x2", this.x(index));
    } else {
      index = length - 1;
    }
    this.index = index;
    const value = ({ series }) => course.series[series]?.mean[index];
    const [from, to] = [course.first[index], course.last[index]];
    const steps = from === to ? `step ${integer(to)}` : `steps ${integer(from)}–${integer(to)}`;
    const parts = this.lines.filter(({ series }) => course.series[series]).map((line) => ({ ...line, text: this.format(value(line)) }));
    const shown = parts.map(({ label, tone, text }) => el("span", { class: `value ${tone}` }, label ? `${label} ` : "", el("b", {}, text)));
    if (pointer.step !== null) shown.unshift(el("span", { class: "steps" }, steps));
    this.values.replaceChildren(...shown);
    mark(this.slider, "aria-valuenow", index);
    mark(this.slider, "aria-valuetext", `${steps}: ${parts.map(({ label, text }) => `${label ?? ""} ${text}`.trim()).join(", ")}`);
  }

  seek(offset) {
    if (!this.course?.last.length || !this.x) return;
    let [low, high] = [0, this.course.last.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.x(middle) + this.x(middle + 1)) / 2 < offset) low = middle + 1;
      else high = middle;
    }
    pointer.to(this.course.last[low]);
  }

  key(event) {
    const length = this.course?.last.length ?? 0;
    const page = Math.max(1, Math.round(length / 10));
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: -length, End: length };
    if (event.key === "Escape") pointer.to(null);
    if (!(event.key in moves) || !length) return;
    event.preventDefault();
    const index = Math.min(length - 1, Math.max(0, (this.index ?? length - 1) + moves[event.key]));
    pointer.to(this.course.last[index]);
  }
}

/** A line without axes, for a row of a table. The last value has a dot, and so has the best. */
export function spark(values, best) {
  const [width, height, room] = [104, 24, 4];
  const extent = range([values]) ?? [0, 1];
  const x = (index) => room + (index / Math.max(1, values.length - 1)) * (width - 2 * room);
  const y = (value) => room + (1 - (value - extent[0]) / (extent[1] - extent[0])) * (height - 2 * room);
  const d = runs(values).map((run) => `M${run.map((index) => `${x(index).toFixed(1)} ${y(values[index]).toFixed(1)}`).join("L")}`).join("");
  const dot = (index, name) => (present(values[index]) ? svg("circle", { class: name, cx: x(index), cy: y(values[index]), r: 2.5 }) : null);
  return svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("path", { class: "line blue", d }), dot(values.length - 1, "end blue"), best === null ? null : dot(best, "best"));
}
