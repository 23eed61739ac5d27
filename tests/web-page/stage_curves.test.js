// Tests of the curves of a stage: deltas of a coordinator, deltas that do not match, and the scale
// of the charts.

import assert from "node:assert/strict";
import { test } from "node:test";

const PAGE = "../../coordinator/src/service/http/page";
const { StageCurves } = await import(`${PAGE}/stage_curves.js`);
const { RequestError } = await import(`${PAGE}/api.js`);
const { axisTicks, valueRange } = await import(`${PAGE}/scale.js`);
const MAX_BUCKETS = 512;
/** Maximal numbers of points of a curve, on a narrow and on a wide page. */
const MAX_POINTS = [72, 128];

/** The nearest number of single precision, as it is written in JSON. */
function toSinglePrecision(value) {
  const nearest = Math.fround(value);
  for (let digits = 1; digits < 9; digits += 1) {
    const short = Number(nearest.toPrecision(digits));
    if (Math.fround(short) === nearest) return short;
  }
  return Number(nearest.toPrecision(9));
}

/** A coordinator with `steps` steps of stage 2, each with the same values. */
class FakeCoordinator {
  constructor(values) {
    this.values = values;
    this.steps = 0;
    this.queries = [];
    globalThis.fetch = async (path) => this.answer(new URL(path, "http://coordinator/"));
  }

  get version() {
    return { version: 5, steps: this.steps };
  }

  answer(url) {
    this.queries.push(url.search);
    const delta = this.delta(url.searchParams);
    const answer = this.modify?.(delta) ?? delta;
    return { ok: true, status: 200, json: async () => JSON.parse(JSON.stringify(answer)) };
  }

  delta(query) {
    const isFull = query.get("range") === "full";
    const bucketSize = isFull ? 2 ** Math.max(0, Math.ceil(Math.log2(this.steps / MAX_BUCKETS))) : 1;
    const begin = isFull ? 1 : Math.max(1, this.steps - MAX_BUCKETS + 1);
    const all = Array.from({ length: Math.ceil((this.steps - begin + 1) / bucketSize) }, (_, index) => begin + index * bucketSize);
    const fromStep = Number(query.get("from_step"));
    const isSameVersion = Number(query.get("version")) === 5 && Number(query.get("bucket_size")) === bucketSize;
    const isDelta = isSameVersion && all.includes(fromStep);
    const first = isDelta ? all.filter((step) => step >= fromStep) : all;
    const last = first.map((step) => Math.min(step + bucketSize - 1, this.steps));
    const columns = ([name, value]) => {
      const mean = first.map((step, index) => {
        let sum = 0;
        for (let each = step; each <= last[index]; each += 1) sum += value;
        return toSinglePrecision(sum / (last[index] - step + 1));
      });
      const extremes = bucketSize > 1 ? { min: first.map(() => toSinglePrecision(value)), max: first.map(() => toSinglePrecision(value)) } : {};
      return [name, { mean, ...extremes }];
    };
    const series = Object.fromEntries(Object.entries(this.values).map(columns));
    return { stage: 2, range: query.get("range"), ...this.version, bucket_size: bucketSize, is_delta: isDelta, first, last, at: last, series };
  }
}

const data = ({ first, last, at, series }) => ({ first, last, at, series });

/** The data of a client that requests everything now. */
async function fullData(coordinator, range) {
  const curves = new StageCurves(2, range);
  await curves.refresh(coordinator.version);
  return data(curves);
}

for (const range of ["full", "recent"]) {
  test(`deltas add up to the full answer: ${range}`, async () => {
    const coordinator = new FakeCoordinator({ loss: 0.3 });
    const curves = new StageCurves(2, range);
    assert.equal(await curves.refresh(coordinator.version), true);
    for (const newSteps of [1, 1, 5, 300, 0, 205, 1, 511, 512, 513, 3000, 4096, 4096, 1]) {
      coordinator.steps += newSteps;
      assert.equal(await curves.refresh(coordinator.version), newSteps > 0);
      assert.deepEqual(data(curves), await fullData(coordinator, range));
    }
    assert.ok(curves.first.length <= MAX_BUCKETS);
  });
}

test("a delta that does not match is followed by a full request", async () => {
  const modifications = {
    "of another version": (delta) => ({ ...delta, version: 6 }),
    "with another bucket size": (delta) => ({ ...delta, bucket_size: 2 }),
    "of another stage": (delta) => ({ ...delta, stage: 1 }),
    "of another range": (delta) => ({ ...delta, range: "recent" }),
    "beyond the client's buckets": (delta) => ({ ...delta, first: [400], last: [400], at: [400], series: { loss: { mean: [1] } } }),
    "that begins within a bucket": (delta) => ({ ...delta, first: delta.first.map((step) => step + 0.5) }),
    "without buckets": (delta) => ({ ...delta, first: [], last: [], at: [], series: {} }),
    "with decreasing steps": (delta) => ({ ...delta, last: delta.last.map((step) => step - 1000) }),
    "with columns of different lengths": (delta) => ({ ...delta, series: { loss: { mean: [1] } } }),
    "with a column that is null": (delta) => ({ ...delta, series: { loss: { mean: null } } }),
    "without columns": ({ first, last, at, ...delta }) => delta,
  };
  for (const [name, modify] of Object.entries(modifications)) {
    const coordinator = new FakeCoordinator({ loss: 0.3 });
    const curves = new StageCurves(2, "full");
    coordinator.steps = 300;
    await curves.refresh(coordinator.version);
    coordinator.steps = 310;
    coordinator.modify = (delta) => (delta.is_delta ? modify(delta) : delta);
    assert.equal(await curves.refresh(coordinator.version), true, name);
    assert.equal(coordinator.queries.length, 3, `${name}: requested ${coordinator.queries}`);
    assert.deepEqual(data(curves), await fullData(coordinator, "full"), name);
  }
});

test("data stay unchanged after an answer that does not match and after a failed request", async (context) => {
  const coordinator = new FakeCoordinator({ loss: 0.3 });
  const curves = new StageCurves(2, "full");
  coordinator.steps = 300;
  await curves.refresh(coordinator.version);
  const before = structuredClone(data(curves));
  coordinator.steps = 310;
  const errorLog = context.mock.method(console, "error", () => {});
  coordinator.modify = (delta) => ({ ...delta, last: [] });
  assert.equal(await curves.refresh(coordinator.version), false);
  assert.match(errorLog.mock.calls[0].arguments[0], /stage 2 is inconsistent/);
  assert.deepEqual(data(curves), before);
  for (const answer of [
    async () => { throw new TypeError("fetch failed"); },
    async () => ({ ok: false, status: 503, json: async () => ({ error: "busy" }) }),
    // A truncated answer.
    async () => ({ ok: true, status: 200, json: async () => { throw new SyntaxError("unexpected end"); } }),
  ]) {
    globalThis.fetch = answer;
    await assert.rejects(curves.refresh(coordinator.version), RequestError);
    assert.deepEqual(data(curves), before);
  }
});

// Means of these constants in double precision differ in the last bit. A coordinator reads 100,000
// steps in queries of 4,096.
test("curves can be drawn at every length of a journal", async () => {
  const values = Object.fromEntries([0, 5e-5, 1e-6, 0.05, 0.1, 0.9, 1 / 3, -0.3, 12.7, 1e30, 1e-40].map((value) => [`constant ${value}`.replace(".", ","), value]));
  for (let steps = 4096; steps <= 102_400; steps += 4096) {
    const coordinator = new FakeCoordinator(values);
    coordinator.steps = Math.min(steps, 100_000);
    const curves = new StageCurves(2, "full");
    await curves.refresh(coordinator.version);
    for (const points of MAX_POINTS) {
      const downsampled = curves.downsample(points);
      assert.ok(downsampled.first.length <= points);
      for (const [name, { mean, min, max }] of Object.entries(downsampled.series)) assertDrawable(`${steps} steps ${name}`, [mean, min, max]);
    }
  }
});

test("a scale has a finite range and few ticks for all values", () => {
  const epsilon = Number.EPSILON;
  for (const values of [
    [0, 0], [1, 1], [-1, -1], [0.05, 0.05 * (1 + epsilon)], [-0.05, -0.05 * (1 + epsilon)], [1e16, 1e16 + 2], [0, 5e-324],
    [1e-45, 3e-45], [-3.4e38, 3.4e38], [1, 1 + 3e-7], [0.1, 0.1 + 2e-8], [-1e-9, 1e9], [1e-300, 1e300], [0, 1], [-5, 17.2],
    [Infinity, 1, 2], [NaN, 1, 2], [null, 3, 4],
  ]) assertDrawable(`${values}`, [values]);
  assert.deepEqual(axisTicks([0, 1], 4), [0, 0.5, 1]);
  assert.deepEqual(axisTicks([-0.06, 1.06], 4), [0, 0.5, 1]);
  assert.deepEqual(valueRange([[null, null]]), null);
  // Values that differ in single precision are distinguished.
  const [low, high] = valueRange([[1, 1 + 2 ** -20]]);
  assert.ok(high - low < 1e-5);
});

function assertDrawable(name, columns) {
  const extent = valueRange(columns);
  assert.ok(extent[0] < extent[1] && extent.every(Number.isFinite), `${name}: from ${extent[0]} to ${extent[1]}`);
  for (const count of [3, 4]) {
    const ticks = axisTicks(extent, count);
    assert.ok(ticks.length <= 10 && ticks.every(Number.isFinite), `${name}: ticks ${ticks}`);
  }
}
