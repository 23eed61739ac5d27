// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clockTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const shortTime = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const dateTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });
const dayTime = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });

/** An integer. */
export const integer = (value) => whole.format(value);

/** A number with about four digits that matter. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 10000) return whole.format(value);
  if (size < 0.001) return value.toExponential(2).replace("e", " e").replace("-", "−");
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
  return value.toFixed(digits).replace("-", "−");
}

/** A number for an axis: no digit that says nothing. */
export function tick(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1).replace(".0", "").replace("-", "−");
  if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`.replace("-", "−");
  return String(+value.toPrecision(4)).replace("-", "−");
}

/** A share as per cent. */
export const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");

/** Seconds of a step. */
export const seconds = (value) => (Number.isFinite(value) ? `${number(value)} s` : "–");

/** How long something takes, in words. */
export function duration(total) {
  if (total === null || total === undefined || !Number.isFinite(total)) return null;
  const value = Math.max(0, Math.round(total));
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${value % 60} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.round(value / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The time of day, of Unix seconds. */
export const clock = (at) => clockTime.format(at * 1000);

/** Date and time. */
export const date = (at) => dateTime.format(at * 1000);

/** When something will be, as short as it can be said. */
export function when(at, now) {
  const [day, today] = [new Date(at * 1000), new Date(now * 1000)];
  return (day.toDateString() === today.toDateString() ? shortTime : dayTime).format(day);
}

const KNOWN = {
  pac_s: "PAC-S", ref_pac_s: "RefPAC-S", clip_s: "CLIP-S", ref_clip_s: "RefCLIP-S", cider: "CIDEr", spice: "SPICE", meteor: "METEOR",
  rouge_l: "ROUGE-L", bleu_1: "BLEU-1", bleu_2: "BLEU-2", bleu_3: "BLEU-3", bleu_4: "BLEU-4", retrieval_r1: "retrieval R@1",
  retrieval_r5: "retrieval R@5", retrieval_r10: "retrieval R@10", retrieval_mrr: "retrieval MRR", dico: "DiCO", scst: "SCST", kl: "KL",
};

/** A name of the journal for people: `bleu_4` is "BLEU-4", `reward_chosen` is "reward chosen". */
export const words = (name) => (Object.hasOwn(KNOWN, name) ? KNOWN[name] : name.replaceAll("_", " "));
