// The curves of a stage as the coordinator sends them: first a full answer, then deltas. A bucket
// is a range of consecutive steps.

import { get } from "./api.js";

/** Maximal number of the last steps, one per bucket, in the range "recent". */
const MAX_RECENT_STEPS = 512;

/**
 * The curves of a stage, as columns with one element per bucket: `first` and `last` step, time
 * (`at`), and the columns of each series.
 */
export class StageCurves {
  /** `range` is "full" for the whole stage, or "recent" for its last steps, one per bucket. */
  constructor(stage, range) {
    this.stage = stage;
    this.range = range;
    this.version = 0;
    this.bucketSize = 0;
    /** The number of steps that the coordinator's curves had when these were loaded; -1 before. */
    this.loadedSteps = -1;
    this.first = [];
    this.last = [];
    this.at = [];
    this.series = {};
  }

  /**
   * Requests the steps that these curves do not have. `version` and `steps` are those of the
   * coordinator's curves, in a snapshot of the run. Returns whether anything changed.
   */
  async refresh({ version, steps }) {
    if (this.version === version && this.loadedSteps === steps) return false;
    const path = `history?stage=${this.stage}&range=${this.range}`;
    const fromStep = this.first.at(-1) ?? 0;
    const cursor = `version=${this.version}&bucket_size=${this.bucketSize}&from_step=${fromStep}`;
    if (this.apply(await get(`${path}&${cursor}`))) return true;
    // The delta does not match these curves: request a full answer.
    if (this.apply(await get(path))) return true;
    console.error(`the coordinator's history of stage ${this.stage} is inconsistent`);
    return false;
  }

  /**
   * Applies an answer of the coordinator. Returns false, and changes nothing, if the answer does
   * not match.
   */
  apply(answer) {
    if (!this.matches(answer)) return false;
    const keptLength = answer.is_delta ? this.first.indexOf(answer.first[0]) : 0;
    const newLength = answer.first.length;
    const append = (oldColumn, newColumn) => {
      const kept = oldColumn ? oldColumn.slice(0, keptLength) : new Array(keptLength).fill(null);
      return kept.concat(newColumn ?? new Array(newLength).fill(null));
    };
    const series = {};
    for (const name of new Set([...(answer.is_delta ? Object.keys(this.series) : []), ...Object.keys(answer.series)])) {
      const [oldColumns, newColumns] = [this.series[name], answer.series[name]];
      const columns = { mean: append(oldColumns?.mean, newColumns?.mean) };
      if (oldColumns?.min || newColumns?.min) {
        columns.min = append(oldColumns?.min, newColumns?.min);
        columns.max = append(oldColumns?.max, newColumns?.max);
      }
      series[name] = columns;
    }
    this.first = append(this.first, answer.first);
    this.last = append(this.last, answer.last);
    this.at = append(this.at, answer.at);
    this.series = series;
    [this.version, this.bucketSize, this.loadedSteps] = [answer.version, answer.bucket_size, answer.steps];
    if (this.range === "recent") this.dropOldest(this.first.length - MAX_RECENT_STEPS);
    return true;
  }

  /**
   * Whether an answer is about these curves and consistent. A delta must begin with a bucket of
   * these curves.
   */
  matches(answer) {
    if (answer.stage !== this.stage || answer.range !== this.range) return false;
    const { first, last, at, series } = answer;
    if (![first, last, at].every(Array.isArray) || typeof series !== "object") return false;
    const columns = [first, last, at, ...Object.values(series).flatMap((statistics) => Object.values(statistics))];
    if (columns.some((column) => column?.length !== first.length)) return false;
    if (first.some((step, index) => step > last[index] || step <= (last[index - 1] ?? -1))) return false;
    if (!answer.is_delta) return true;
    return answer.version === this.version && answer.bucket_size === this.bucketSize && this.first.includes(first[0]);
  }

  /** The same curves in at most `maxBuckets` buckets, without times. */
  downsample(maxBuckets) {
    const groupSize = Math.ceil(this.first.length / maxBuckets);
    if (groupSize <= 1) return this;
    const groups = [];
    for (let begin = 0; begin < this.first.length; begin += groupSize) groups.push([begin, Math.min(begin + groupSize, this.first.length)]);
    // A small last group is merged with the one before: the mean of a few steps would be noisy.
    if (groups.at(-1)[1] - groups.at(-1)[0] < groupSize / 2) groups.splice(-2, 2, [groups.at(-2)[0], groups.at(-1)[1]]);
    const reduce = (column, merge) => groups.map(([begin, end]) => {
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
    const downsampled = new StageCurves(this.stage, this.range);
    downsampled.first = groups.map(([begin]) => this.first[begin]);
    downsampled.last = groups.map(([, end]) => this.last[end - 1]);
    for (const [name, columns] of Object.entries(this.series)) {
      downsampled.series[name] = { mean: mean(columns.mean) };
      // Series of quantiles ("reward_chosen.p50") have no minimum and maximum.
      if (name.includes(".")) continue;
      downsampled.series[name].min = reduce(columns.min ?? columns.mean, Math.min);
      downsampled.series[name].max = reduce(columns.max ?? columns.mean, Math.max);
    }
    return downsampled;
  }

  /** Drops the oldest `count` buckets. */
  dropOldest(count) {
    if (count <= 0) return;
    for (const name of ["first", "last", "at"]) this[name].splice(0, count);
    for (const columns of Object.values(this.series)) for (const column of Object.values(columns)) column.splice(0, count);
  }
}
