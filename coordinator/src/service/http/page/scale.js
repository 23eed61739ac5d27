// The scale of a chart: the range of its values, and the ticks of its axis.

/** Values closer to each other than this share of their size are equal: the coordinator sends single precision. */
const RESOLUTION = 2 ** -22;
/** No axis has room for more ticks; a range that seems to need more is too narrow to tell values apart. */
const MAX_TICKS = 32;

export const present = (value) => value !== null && value !== undefined;

/** The range of the values in some columns, without the rare ones that would make the rest flat; null without values. */
export function range(columns) {
  const values = columns.flatMap((column) => column.filter(Number.isFinite)).sort((a, b) => a - b);
  if (values.length === 0) return null;
  const rare = values.length > 60 ? Math.floor(values.length * 0.01) : 0;
  let [low, high] = [values[rare], values[values.length - 1 - rare]];
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (high - low <= size * RESOLUTION) [low, high] = size === 0 ? [-1, 1] : [low - size * 0.1, high + size * 0.1];
  const room = (high - low) * 0.06;
  // What is never negative has no room below zero.
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/** Round values within a range, about `count` of them. */
export function ticks([low, high], count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((unit) => unit * power).find((unit) => unit >= rough);
  const first = Math.ceil(low / step);
  // Counted before, as adding one to a large number may change nothing.
  const length = Math.floor(high / step) - first + 1;
  if (!(length >= 0 && length <= MAX_TICKS)) return [];
  return Array.from({ length }, (_, index) => (first + index) * step);
}
