// Formats numbers, times and names for the page.

import { METRICS } from "./metrics.js";

const integerFormat = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const timeFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const shortTimeFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const dateTimeFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });
const dayTimeFormat = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });

/** An integer. */
export const formatInteger = (value) => integerFormat.format(value);

/** A number with about four significant digits. */
export function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 10000) return integerFormat.format(value);
  if (size < 0.001) return value.toExponential(2).replace("e", " e").replace("-", "−");
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
  return value.toFixed(digits).replace("-", "−");
}

/** A number for the tick of an axis, without trailing zeros. */
export function formatTick(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1).replace(".0", "").replace("-", "−");
  if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`.replace("-", "−");
  return String(+value.toPrecision(4)).replace("-", "−");
}

/** A share as per cent. */
export const formatPercent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");

/** A short duration, such as that of a step, in seconds. */
export const formatSeconds = (value) => (Number.isFinite(value) ? `${formatNumber(value)} s` : "–");

/** A duration in days, hours, minutes and seconds; null if it is unknown. */
export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return null;
  const value = Math.max(0, Math.round(seconds));
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${value % 60} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.round(value / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The time of day of Unix seconds. */
export const formatTime = (at) => timeFormat.format(at * 1000);

/** The date and time of Unix seconds. */
export const formatDateTime = (at) => dateTimeFormat.format(at * 1000);

/** A time after `now`, in Unix seconds: the time of day, with the date unless it is today. */
export function formatDeadline(at, now) {
  const [day, today] = [new Date(at * 1000), new Date(now * 1000)];
  return (day.toDateString() === today.toDateString() ? shortTimeFormat : dayTimeFormat).format(day);
}

const OBJECTIVE_NAMES = { dico: "DiCO", dpo: "DPO", scst: "SCST" };

/**
 * The display name of a metric, an objective or an event kind: "BLEU-4" for `bleu_4`, "stage
 * ended" for `stage_ended`.
 */
export const displayName = (name) => (METRICS[name]?.label ?? OBJECTIVE_NAMES[name] ?? name.replaceAll("_", " "));
