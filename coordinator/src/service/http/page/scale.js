// The scale of a chart: the range of its values, and the ticks of its axis.

/**
 * Values whose relative difference is smaller count as equal, because the coordinator sends values
 * in single precision.
 */
const RELATIVE_RESOLUTION = 2 ** -22;
/** A range that would get more ticks is too narrow for double precision, and gets none. */
const MAX_TICKS = 32;

/** Whether an element of a column is a value: columns have null for a missing value. */
export const hasValue = (value) => value !== null && value !== undefined;

/**
 * The range of the values in some columns, with a margin; null without values. Of many values, the
 * lowest and highest 1 % do not count, because outliers would flatten the rest.
 */
export function valueRange(columns) {
  const values = columns.flatMap((column) => column.filter(Number.isFinite)).sort((a, b) => a - b);
  if (values.length === 0) return null;
  const outliers = values.length > 60 ? Math.floor(values.length * 0.01) : 0;
  let [low, high] = [values[outliers], values[values.length - 1 - outliers]];
  const magnitude = Math.max(Math.abs(low), Math.abs(high));
  if (high - low <= magnitude * RELATIVE_RESOLUTION) [low, high] = magnitude === 0 ? [-1, 1] : [low - magnitude * 0.1, high + magnitude * 0.1];
  const margin = (high - low) * 0.06;
  // Values that are never negative get no margin below zero.
  return [low >= 0 && low - margin < 0 ? 0 : low - margin, high + margin];
}

/** About `count` round values within a range. */
export function axisTicks([low, high], count) {
  const minStep = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(minStep));
  const step = [1, 2, 5, 10].map((unit) => unit * power).find((unit) => unit >= minStep);
  const first = Math.ceil(low / step);
  // Computed before the loop, because adding one to a large number may not change it.
  const length = Math.floor(high / step) - first + 1;
  if (!(length >= 0 && length <= MAX_TICKS)) return [];
  return Array.from({ length }, (_, index) => (first + index) * step);
}
