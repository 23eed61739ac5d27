// The course of a stage as the coordinator tells it: all of it once, then what came after.

import { get } from "./api.js";

const MAX_RECENT = 512;

export class Course {
  constructor(stage, span) {
    this.stage = stage;
    this.span = span;
    this.era = 0;
    this.width = 0;
    this.known = -1;
    this.first = [];
    this.last = [];
    this.at = [];
    this.series = {};
  }

  /** Brings it up to date with what the coordinator says it has; whether anything changed. */
  async refresh(version) {
    if (this.era === version.era && this.known === version.steps) return false;
    const own = `history?stage=${this.stage}&span=${this.span}`;
    const from = this.first.at(-1) ?? 0;
    if (this.take(await get(`${own}&era=${this.era}&width=${this.width}&from=${from}`))) return true;
    // A delta that does not fit what is held: all of it is asked for.
    if (this.take(await get(own))) return true;
    console.error(`the coordinator's history of stage ${this.stage} is inconsistent`);
    return false;
  }

  /** Takes in a piece; if it does not fit, nothing changes and the answer is false. */
  take(piece) {
    if (!this.fits(piece)) return false;
    const kept = piece.continues ? this.first.indexOf(piece.first[0]) : 0;
    const length = piece.first.length;
    const join = (held, more) => {
      const old = held ? held.slice(0, kept) : new Array(kept).fill(null);
      return old.concat(more ?? new Array(length).fill(null));
    };
    const series = {};
    for (const name of new Set([...(piece.continues ? Object.keys(this.series) : []), ...Object.keys(piece.series)])) {
      const [held, more] = [this.series[name], piece.series[name]];
      const columns = { mean: join(held?.mean, more?.mean) };
      if (held?.min || more?.min) {
        columns.min = join(held?.min, more?.min);
        columns.max = join(held?.max, more?.max);
      }
      series[name] = columns;
    }
    this.first = join(this.first, piece.first);
    this.last = join(this.last, piece.last);
    this.at = join(this.at, piece.at);
    this.series = series;
    [this.era, this.width, this.known] = [piece.era, piece.width, piece.steps];
    if (this.span === "recent") this.trim(this.first.length - MAX_RECENT);
    return true;
  }

  /** Whether a piece is of this course and consistent, and, if it continues, begins with a bucket that is held. */
  fits(piece) {
    if (piece.stage !== this.stage || piece.span !== this.span) return false;
    const { first, last, at, series } = piece;
    if (![first, last, at].every(Array.isArray) || typeof series !== "object") return false;
    const columns = [first, last, at, ...Object.values(series).flatMap((names) => Object.values(names))];
    if (columns.some((column) => column?.length !== first.length)) return false;
    if (first.some((step, index) => step > last[index] || step <= (last[index - 1] ?? -1))) return false;
    if (!piece.continues) return true;
    return piece.era === this.era && piece.width === this.width && this.first.includes(first[0]);
  }

  /** The same course in at most so many buckets. */
  thin(most) {
    const each = Math.ceil(this.first.length / most);
    if (each <= 1) return this;
    const groups = [];
    for (let begin = 0; begin < this.first.length; begin += each) groups.push([begin, Math.min(begin + each, this.first.length)]);
    // A few steps at the end are no point of their own: they would jump about.
    if (groups.at(-1)[1] - groups.at(-1)[0] < each / 2) groups.splice(-2, 2, [groups.at(-2)[0], groups.at(-1)[1]]);
    const within = (column, merge) => groups.map(([begin, end]) => {
      let merged = null;
      for (let index = begin; index < end; index += 1) {
        if (column[index] !== null) merged = merged === null ? column[index] : merge(merged, column[index]);
      }
      return merged;
    });
    const mean = (column) => groups.map(([begin, end]) => {
      let [sum, steps] = [0, 0];
      for (let index = begin; index < end; index += 1) {
        const weight = column[index] === null ? 0 : this.last[index] - this.first[index] + 1;
        sum += weight * (column[index] ?? 0);
        steps += weight;
      }
      return steps ? sum / steps : null;
    });
    const thin = new Course(this.stage, this.span);
    thin.first = groups.map(([begin]) => this.first[begin]);
    thin.last = groups.map(([, end]) => this.last[end - 1]);
    for (const [name, columns] of Object.entries(this.series)) {
      thin.series[name] = { mean: mean(columns.mean) };
      // Of quantiles the coordinator tells no extremes.
      if (name.includes(".")) continue;
      thin.series[name].min = within(columns.min ?? columns.mean, Math.min);
      thin.series[name].max = within(columns.max ?? columns.mean, Math.max);
    }
    return thin;
  }

  trim(surplus) {
    if (surplus <= 0) return;
    for (const name of ["first", "last", "at"]) this[name].splice(0, surplus);
    for (const columns of Object.values(this.series)) for (const column of Object.values(columns)) column.splice(0, surplus);
  }
}
