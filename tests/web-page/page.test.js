// Tests of the page in headless Chromium, with a real coordinator, a real worker, and a journal of
// 100,000 steps.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { ADMIN_TOKEN, TestCluster, waitFor } from "./cluster.js";

const AXE_SCRIPT = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const STEPS_OF_LONG_RUN = 100_000;
/** Time limit of a wait, in milliseconds. Long enough for a busy machine. */
const WAIT_TIMEOUT = 600_000;
/** Options of each test, which waits several times. */
const TEST_OPTIONS = { timeout: 1_800_000 };
const VIEWPORTS = { desktop: { width: 1440, height: 900 }, phone: { width: 390, height: 844 } };

let browser;
let cluster;
let run;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: CHROMIUM_FLAGS, timeout: WAIT_TIMEOUT });
  cluster = new TestCluster();
  run = await cluster.serve(cluster.writeRunFile("shapes", 100_000));
  cluster.startWorker(run, 0);
});

after(async () => {
  await browser?.close();
  await cluster?.close();
});

/**
 * Opens the page of a coordinator. `check` and `close` fail if the page requested anything from
 * another server, or wrote an error or warning to the console that does not match `expected`.
 */
async function open({ http }, { size = "desktop", colorScheme = "light", expected = /^$/ } = {}) {
  const context = await browser.newContext({ viewport: VIEWPORTS[size], colorScheme });
  context.setDefaultTimeout(WAIT_TIMEOUT);
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) problems.push(message.text());
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`${http}/`)) problems.push(`request to another server: ${request.url()}`); });
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
  });
  await page.goto(http);
  const check = async () => {
    assert.deepEqual(await page.evaluate(() => window.violations), [], "violations of the content security policy");
    assert.deepEqual(problems, [], "errors in the console, or requests to other servers");
  };
  const close = async () => {
    await check();
    await context.close();
  };
  return { page, check, close };
}

/** Accessibility violations that axe reports. */
async function violations(page) {
  await page.evaluate(AXE_SCRIPT);
  const report = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return report.violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`);
}

/** Sends a command without the page. */
async function sendCommand(name) {
  const answer = await fetch(`${run.http}/api/${name}`, { method: "POST", headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
  assert.equal(answer.status, 200, await answer.text());
}

const waitForCaptions = (page) => page.waitForSelector("#captions .card img");

test("a step is shown soon after its commit", TEST_OPTIONS, async () => {
  const { page, close } = await open(run);
  await page.waitForFunction(() => document.querySelector("#state").textContent === "running" && document.querySelector('[data-progress="current"] span:nth-child(2)').textContent === "dico");
  await page.evaluate(() => {
    window.shownAt = {};
    const step = document.querySelector("#step");
    new MutationObserver(() => { window.shownAt[step.textContent.replaceAll(",", "")] ??= Date.now() / 1000; }).observe(step, { childList: true, characterData: true, subtree: true });
  });
  await page.waitForFunction(() => Object.keys(window.shownAt).length >= 20);
  const shownAt = await page.evaluate(() => window.shownAt);
  const last = Math.max(...Object.keys(shownAt).map(Number));
  const history = await waitFor(`step ${last} in the history`, async () => {
    const recent = await (await fetch(`${run.http}/api/history?stage=2&range=recent`)).json();
    return recent.last.at(-1) >= last && recent;
  });
  const committed = Object.fromEntries(history.last.map((step, index) => [step, history.at[index]]));
  const delays = Object.entries(shownAt).filter(([step]) => step in committed).map(([step, at]) => at - committed[step]).sort((a, b) => a - b);
  assert.ok(delays.length >= 15, `only ${delays.length} steps were shown`);
  console.log(`shown after its commit: median ${delays[delays.length >> 1].toFixed(2)} s, longest ${delays.at(-1).toFixed(2)} s, of ${delays.length} steps`);
  // The curves are updated, too.
  await page.waitForFunction((step) => Number(document.querySelector("#charts-note").textContent.match(/to ([\d,]+)/)?.[1].replaceAll(",", "")) > step, history.last.at(-1));
  await close();
});

test("captions of two evaluations are shown with their images", TEST_OPTIONS, async () => {
  const { page, close } = await open(run);
  await waitForCaptions(page);
  // Until the first evaluation of the stage, captions of the previous stage are shown.
  await page.waitForFunction(() => /dico \d/.test(document.querySelector("#captions .card")?.innerText));
  await page.locator("#captions .card").first().scrollIntoViewIfNeeded();
  await page.waitForFunction(() => document.querySelector("#captions .card img")?.naturalWidth > 0);
  const [first] = await page.locator("#captions .card").allInnerTexts();
  assert.match(first, /xe 6[\s\S]*dico \d+[\s\S]*PAC-S/);
  await close();
});

for (const [size, colorScheme] of [["desktop", "light"], ["desktop", "dark"], ["phone", "light"], ["phone", "dark"]]) {
  test(`the page has no accessibility violations: ${size}, ${colorScheme}`, TEST_OPTIONS, async () => {
    const { page, close } = await open(run, { size, colorScheme });
    await waitForCaptions(page);
    assert.deepEqual(await violations(page), []);
    await page.getByRole("button", { name: "Enter the admin token" }).click();
    assert.deepEqual(await violations(page), [], "in the dialog");
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `the page is ${overflow} pixels too wide`);
    await close();
  });
}

test("the gammas of the rejected candidates add up to one", TEST_OPTIONS, async () => {
  const { page, close } = await open(run);
  const gammas = page.locator("#candidates meter");
  await gammas.first().waitFor();
  // Read in one call, because the next step replaces them.
  const { candidates, gamma } = await page.evaluate(() => ({
    candidates: document.querySelectorAll("#candidates tbody tr").length,
    gamma: [...document.querySelectorAll("#candidates meter")].map(({ value }) => value),
  }));
  assert.deepEqual([candidates, gamma.length], [3, 2], "one of three beams is chosen");
  assert.ok(Math.abs(gamma[0] + gamma[1] - 1) < 1e-5, `${gamma}`);
  await close();
});

test("all controls can be reached with the keyboard", TEST_OPTIONS, async () => {
  const { page, close } = await open(run);
  await waitForCaptions(page);
  // The run is paused, because elements that are replaced lose the keyboard focus.
  await sendCommand("pause");
  await page.waitForFunction(() => document.querySelector("#state").textContent.startsWith("paused"));
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  const count = await page.evaluate(() => {
    const controls = [...document.querySelectorAll("a, button, select, summary, input, [tabindex='0']")];
    const visible = controls.filter((element) => !element.disabled && element.checkVisibility());
    visible.forEach((element, index) => { element.dataset.control = index; });
    return visible.length;
  });
  const reached = new Set();
  for (let press = 0; press < count + 30; press += 1) {
    const control = await page.evaluate(() => document.activeElement.dataset.control);
    if (control !== undefined) reached.add(control);
    await page.keyboard.press("Tab");
  }
  assert.ok(reached.size >= count * 0.8, `${reached.size} of ${count} controls were reached`);
  const loss = page.getByRole("slider", { name: "Loss by step" });
  await loss.focus();
  await page.keyboard.press("Home");
  assert.match(await loss.getAttribute("aria-valuetext"), /^steps? 1\b.*: \d/);
  const before = await loss.getAttribute("aria-valuenow");
  await page.keyboard.press("ArrowRight");
  assert.equal(Number(await loss.getAttribute("aria-valuenow")), Number(before) + 1);
  await sendCommand("resume");
  await close();
});

test("buttons require the admin token", TEST_OPTIONS, async () => {
  const { page, close } = await open(run, { expected: /status of 401/ });
  const enterToken = async (token) => {
    await page.getByLabel("Token", { exact: true }).fill(token);
    await page.getByRole("button", { name: "Use token" }).click();
  };
  const waitForNotice = (text) => page.waitForFunction((expected) => document.querySelector("#notice").textContent.includes(expected), text);
  await page.getByRole("button", { name: "Pause" }).click();
  await enterToken("a-wrong-token-of-the-page");
  await waitForNotice("requires its admin token");
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "a wrong token is removed");
  await page.getByRole("button", { name: "Pause" }).click();
  await enterToken(ADMIN_TOKEN);
  await page.waitForFunction(() => document.querySelector("#state").textContent.startsWith("paused"));
  await page.getByRole("button", { name: "Resume" }).click();
  await page.waitForFunction(() => document.querySelector("#state").textContent === "running");
  for (const name of ["Checkpoint", "Evaluate"]) {
    await page.evaluate(() => { document.querySelector("#notice").textContent = ""; });
    await page.getByRole("button", { name, exact: true }).click();
    await page.waitForFunction(() => document.querySelector("#notice").textContent !== "");
    assert.equal(await page.locator("#notice").getAttribute("data-tone"), "good", await page.locator("#notice").textContent());
  }
  assert.equal(await page.evaluate(() => localStorage.length), 0);
  const otherTab = await page.context().newPage();
  await otherTab.goto(run.http);
  assert.equal(await otherTab.evaluate(() => sessionStorage.length), 0, "another tab does not have the token");
  await close();
});

test("a worker can be drained from its row", TEST_OPTIONS, async () => {
  cluster.startWorker(run, 1);
  const { page, close } = await open(run);
  await page.getByRole("button", { name: "Drain worker 1", exact: true }).click();
  await page.locator("dialog button.primary").click();
  await page.getByLabel("Token", { exact: true }).fill(ADMIN_TOKEN);
  await page.getByRole("button", { name: "Use token" }).click();
  await page.waitForFunction(() => !document.querySelector('[aria-label="Drain worker 1"]'));
  await page.waitForFunction(() => document.querySelector("#state").textContent === "running");
  await close();
});

test(`a run of ${STEPS_OF_LONG_RUN.toLocaleString("en")} steps is shown fast, and markup in it is shown as text`, TEST_OPTIONS, async () => {
  const file = cluster.writeRunFile("long", 200_000);
  const empty = await cluster.serve(file, { admin: false });
  await empty.process.stop();
  cluster.fillJournal("long", STEPS_OF_LONG_RUN);
  const coordinator = await cluster.serve(file, { admin: false });
  const start = Date.now();
  // The image files do not exist: the page shows their names.
  const { page, check } = await open(coordinator, { expected: /status of 404/ });
  await page.waitForFunction((last) => document.querySelector("#charts-note").textContent.includes(`to ${last}`), STEPS_OF_LONG_RUN.toLocaleString("en"));
  const loaded = (Date.now() - start) / 1000;
  const cpuSeconds = coordinator.process.cpuSeconds();
  const times = [];
  let bytes = 0;
  for (let attempt = 0; attempt < 5; attempt += 1) {
    const requestStart = performance.now();
    bytes = (await (await fetch(`${coordinator.http}/api/history?stage=2`)).arrayBuffer()).byteLength;
    times.push(performance.now() - requestStart);
  }
  const reloadStart = Date.now();
  await page.reload();
  await page.waitForFunction((last) => document.querySelector("#charts-note").textContent.includes(`to ${last}`), STEPS_OF_LONG_RUN.toLocaleString("en"));
  console.log(`${STEPS_OF_LONG_RUN} steps: shown ${loaded.toFixed(1)} s after the start of the coordinator (${cpuSeconds.toFixed(1)} s of CPU time), ${((Date.now() - reloadStart) / 1000).toFixed(1)} s after a reload; history in ${Math.min(...times).toFixed(0)} to ${Math.max(...times).toFixed(0)} ms, ${(bytes / 1000).toFixed(0)} kB`);

  await page.waitForSelector("#captions .card");
  const card = page.locator("#captions .card").first();
  assert.match(await card.locator(".caption.after").innerText(), /<script>window\.hurt = 1<\/script><img src=x/);
  assert.match(await page.locator("#events").innerText(), /<img src=x onerror=/);
  assert.equal(await page.evaluate(() => window.hurt), undefined);
  assert.equal(await page.locator("#captions script, #captions img[src='x'], #events img").count(), 0);
  await page.waitForSelector("#captions .placeholder");

  assert.ok(await page.getByRole("button", { name: "Pause" }).isDisabled());
  assert.match(await page.locator("#controls .hint").innerText(), /--admin-token-file/);
  const refused = await fetch(`${coordinator.http}/api/pause`, { method: "POST", headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
  assert.equal(refused.status, 403);
  assert.deepEqual(await violations(page), []);
  await check();

  await coordinator.process.stop();
  await page.waitForFunction(() => document.querySelector("#connection").textContent.includes("does not answer"));
  assert.match(await page.locator("#state").innerText(), /the coordinator was stopped/);
  await page.context().close();
});
