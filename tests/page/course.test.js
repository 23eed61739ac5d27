// How the page holds the course of a stage: deltas of a coordinator, whether they fit, and the scale they are drawn on.

import assert from "node:assert/strict";
import { test } from "node:test";

const PAGE = "../../coordinator/src/service/http/page";
const { Course } = await import(`${PAGE}/course.js`);
const { Unanswered } = await import(`${PAGE}/api.js`);
const { range, ticks } = await import(`${PAGE}/scale.js`);
const MAX_BUCKETS = 512;
/** Points of a curve on a narrow and on a wide page. */
const POINTS = [72, 128];

/** The nearest number of single precision, as JSON has it. */
function single(value) {
  const nearest = Math.fround(value);
  for (let digits = 1; digits < 9; digits += 1) {
    const short = Number(nearest.toPrecision(digits));
    if (Math.fround(short) === nearest) return short;
  }
  return Number(nearest.toPrecision(9));
}

/** A coordinator that has so many steps of stage 2, each with the same values. */
class Coordinator {
  constructor(values) {
    this.values = values;
    this.steps = 0;
    this.asked = [];
    globalThis.fetch = async (path) => this.answer(new URL(path, "http://coordinator/"));
  }

  get version() {
    return { era: 5, steps: this.steps };
  }

  answer(url) {
    this.asked.push(url.search);
    const piece = this.change?.(this.piece(url.searchParams), url.searchParams) ?? this.piece(url.searchParams);
    return { ok: true, status: 200, json: async () => JSON.parse(JSON.stringify(piece)) };
  }

  piece(asked) {
    const whole = asked.get("span") === "whole";
    const width = whole ? 2 ** Math.max(0, Math.ceil(Math.log2(this.steps / MAX_BUCKETS))) : 1;
    const begin = whole ? 1 : Math.max(1, this.steps - MAX_BUCKETS + 1);
    const all = Array.from({ length: Math.ceil((this.steps - begin + 1) / width) }, (_, index) => begin + index * width);
    const held = Number(asked.get("from"));
    const continues = Number(asked.get("era")) === 5 && Number(asked.get("width")) === width && all.includes(held);
    const first = continues ? all.filter((step) => step >= held) : all;
    const last = first.map((step) => Math.min(step + width - 1, this.steps));
    const columns = ([name, value]) => {
      const mean = first.map((step, index) => {
        let sum = 0;
        for (let each = step; each <= last[index]; each += 1) sum += value;
        return single(sum / (last[index] - step + 1));
      });
      const extremes = width > 1 ? { min: first.map(() => single(value)), max: first.map(() => single(value)) } : {};
      return [name, { mean, ...extremes }];
    };
    const series = Object.fromEntries(Object.entries(this.values).map(columns));
    return { stage: 2, span: asked.get("span"), ...this.version, width, continues, first, last, at: last, series };
  }
}

const held = ({ first, last, at, series }) => ({ first, last, at, series });

/** What somebody holds who asks for all of it now. */
async function anew(coordinator, span) {
  const course = new Course(2, span);
  await course.refresh(coordinator.version);
  return held(course);
}

for (const span of ["whole", "recent"]) {
  test(`a journal that is read in pieces is held as a whole: ${span}`, async () => {
    const coordinator = new Coordinator({ loss: 0.3 });
    const course = new Course(2, span);
    assert.equal(await course.refresh(coordinator.version), true);
    for (const more of [1, 1, 5, 300, 0, 205, 1, 511, 512, 513, 3000, 4096, 4096, 1]) {
      coordinator.steps += more;
      assert.equal(await course.refresh(coordinator.version), more > 0);
      assert.deepEqual(held(course), await anew(coordinator, span));
    }
    assert.ok(course.first.length <= MAX_BUCKETS);
  });
}

test("a delta that does not fit is asked for anew", async () => {
  const changes = {
    "of another era": (piece) => ({ ...piece, era: 6 }),
    "of other buckets": (piece) => ({ ...piece, width: 2 }),
    "of another stage": (piece) => ({ ...piece, stage: 1 }),
    "of another span": (piece) => ({ ...piece, span: "recent" }),
    "beyond what is held": (piece) => ({ ...piece, first: [400], last: [400], at: [400], series: { loss: { mean: [1] } } }),
    "from within a bucket": (piece) => ({ ...piece, first: piece.first.map((step) => step + 0.5) }),
    "of nothing": (piece) => ({ ...piece, first: [], last: [], at: [], series: {} }),
    "with steps that go back": (piece) => ({ ...piece, last: piece.last.map((step) => step - 1000) }),
    "with columns of other lengths": (piece) => ({ ...piece, series: { loss: { mean: [1] } } }),
    "with a column that is none": (piece) => ({ ...piece, series: { loss: { mean: null } } }),
    "without columns": ({ first, last, at, ...piece }) => piece,
  };
  for (const [name, change] of Object.entries(changes)) {
    const coordinator = new Coordinator({ loss: 0.3 });
    const course = new Course(2, "whole");
    coordinator.steps = 300;
    await course.refresh(coordinator.version);
    coordinator.steps = 310;
    coordinator.change = (piece) => (piece.continues ? change(piece) : piece);
    assert.equal(await course.refresh(coordinator.version), true, name);
    assert.equal(coordinator.asked.length, 3, `${name}: asked ${coordinator.asked}`);
    assert.deepEqual(held(course), await anew(coordinator, "whole"), name);
  }
});

test("what is held stays where nothing fits, and where nobody answers", async (context) => {
  const coordinator = new Coordinator({ loss: 0.3 });
  const course = new Course(2, "whole");
  coordinator.steps = 300;
  await course.refresh(coordinator.version);
  const before = structuredClone(held(course));
  coordinator.steps = 310;
  const told = context.mock.method(console, "error", () => {});
  coordinator.change = (piece) => ({ ...piece, last: [] });
  assert.equal(await course.refresh(coordinator.version), false);
  assert.match(told.mock.calls[0].arguments[0], /stage 2 is inconsistent/);
  assert.deepEqual(held(course), before);
  for (const answer of [
    async () => { throw new TypeError("fetch failed"); },
    async () => ({ ok: false, status: 503, json: async () => ({ error: "busy" }) }),
    // It was cut off.
    async () => ({ ok: true, status: 200, json: async () => { throw new SyntaxError("unexpected end"); } }),
  ]) {
    globalThis.fetch = answer;
    await assert.rejects(course.refresh(coordinator.version), Unanswered);
    assert.deepEqual(held(course), before);
  }
});

// Constant values, of which means in double precision differ in the last bit: 100,000 steps are read by 4,096.
test("every course of a journal that is being read can be drawn", async () => {
  const values = Object.fromEntries([0, 5e-5, 1e-6, 0.05, 0.1, 0.9, 1 / 3, -0.3, 12.7, 1e30, 1e-40].map((value) => [`constant ${value}`.replace(".", ","), value]));
  for (let steps = 4096; steps <= 102_400; steps += 4096) {
    const coordinator = new Coordinator(values);
    coordinator.steps = Math.min(steps, 100_000);
    const course = new Course(2, "whole");
    await course.refresh(coordinator.version);
    for (const points of POINTS) {
      const thin = course.thin(points);
      assert.ok(thin.first.length <= points);
      for (const [name, { mean, min, max }] of Object.entries(thin.series)) drawable(`${steps} steps ${name}`, [mean, min, max]);
    }
  }
});

test("a scale has a few ticks within its range, whatever the values", () => {
  const epsilon = Number.EPSILON;
  for (const values of [
    [0, 0], [1, 1], [-1, -1], [0.05, 0.05 * (1 + epsilon)], [-0.05, -0.05 * (1 + epsilon)], [1e16, 1e16 + 2], [0, 5e-324],
    [1e-45, 3e-45], [-3.4e38, 3.4e38], [1, 1 + 3e-7], [0.1, 0.1 + 2e-8], [-1e-9, 1e9], [1e-300, 1e300], [0, 1], [-5, 17.2],
    [Infinity, 1, 2], [NaN, 1, 2], [null, 3, 4],
  ]) drawable(`${values}`, [values]);
  assert.deepEqual(ticks([0, 1], 4), [0, 0.5, 1]);
  assert.deepEqual(ticks([-0.06, 1.06], 4), [0, 0.5, 1]);
  assert.deepEqual(range([[null, null]]), null);
  // Values that single precision tells apart are told apart.
  const [low, high] = range([[1, 1 + 2 ** -20]]);
  assert.ok(high - low < 1e-5);
});

function drawable(name, columns) {
  const extent = range(columns);
  assert.ok(extent[0] < extent[1] && extent.every(Number.isFinite), `${name}: from ${extent[0]} to ${extent[1]}`);
  for (const count of [3, 4]) {
    const found = ticks(extent, count);
    assert.ok(found.length <= 10 && found.every(Number.isFinite), `${name}: ticks ${found}`);
  }
}
