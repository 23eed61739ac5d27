// The page in headless Chromium: a real coordinator, a real worker, and a journal with 100,000 steps.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { ADMIN, Place, until } from "./place.js";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const MANY = 100_000;
/** Longer than any wait on a busy machine, in milliseconds; reaching it is a failure, not a measurement. */
const PATIENCE = 600_000;
/** Of a test, which waits a few times. */
const TEST = { timeout: 1_800_000 };
const SIZES = { desktop: { width: 1440, height: 900 }, phone: { width: 390, height: 844 } };

let browser;
let place;
let run;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS, timeout: PATIENCE });
  place = new Place();
  run = await place.serve(place.runFile("shapes", 100_000));
  place.work(run, 0);
});

after(async () => {
  await browser?.close();
  await place?.leave();
});

/** Opens the page of a coordinator. It may only ask that, and say nothing to the console, unless a refusal is expected. */
async function open({ http }, { size = "desktop", colorScheme = "light", expected = /^$/ } = {}) {
  const context = await browser.newContext({ viewport: SIZES[size], colorScheme });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  const wrong = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) wrong.push(message.text());
  });
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`${http}/`)) wrong.push(`asks ${request.url()}`); });
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
  });
  await page.goto(http);
  const check = async () => {
    assert.deepEqual(await page.evaluate(() => window.violations), [], "violations of the content security policy");
    assert.deepEqual(wrong, [], "errors in the console, or requests to others");
  };
  const close = async () => {
    await check();
    await context.close();
  };
  return { page, check, close };
}

/** Everything that axe finds. */
async function violations(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`);
}

/** Steers the run past the page. */
async function command(name) {
  const answer = await fetch(`${run.http}/api/${name}`, { method: "POST", headers: { authorization: `Bearer ${ADMIN}` } });
  assert.equal(answer.status, 200, await answer.text());
}

const captionsShown = (page) => page.waitForSelector("#captions .card img");

test("a step is seen soon after its commit", TEST, async () => {
  const { page, close } = await open(run);
  await page.waitForFunction(() => document.querySelector("#state").textContent === "running" && document.querySelector('[data-at="now"] span:nth-child(2)').textContent === "dico");
  await page.evaluate(() => {
    window.seen = {};
    const step = document.querySelector("#step");
    new MutationObserver(() => { window.seen[step.textContent.replaceAll(",", "")] ??= Date.now() / 1000; }).observe(step, { childList: true, characterData: true, subtree: true });
  });
  await page.waitForFunction(() => Object.keys(window.seen).length >= 20);
  const seen = await page.evaluate(() => window.seen);
  const last = Math.max(...Object.keys(seen).map(Number));
  const course = await until(`step ${last} in the history`, async () => {
    const told = await (await fetch(`${run.http}/api/history?stage=2&span=recent`)).json();
    return told.last.at(-1) >= last && told;
  });
  const committed = Object.fromEntries(course.last.map((step, index) => [step, course.at[index]]));
  const delays = Object.entries(seen).filter(([step]) => step in committed).map(([step, at]) => at - committed[step]).sort((a, b) => a - b);
  assert.ok(delays.length >= 15, `only ${delays.length} steps were seen`);
  console.log(`seen after its commit: median ${delays[delays.length >> 1].toFixed(2)} s, longest ${delays.at(-1).toFixed(2)} s, of ${delays.length} steps`);
  // The curves follow, too.
  await page.waitForFunction((step) => Number(document.querySelector("#charts-note").textContent.match(/to ([\d,]+)/)?.[1].replaceAll(",", "")) > step, course.last.at(-1));
  await close();
});

test("captions before and after are shown with their images", TEST, async () => {
  const { page, close } = await open(run);
  await captionsShown(page);
  // Those of the stage before are shown until its first evaluation.
  await page.waitForFunction(() => /dico \d/.test(document.querySelector("#captions .card")?.innerText));
  await page.locator("#captions .card").first().scrollIntoViewIfNeeded();
  await page.waitForFunction(() => document.querySelector("#captions .card img")?.naturalWidth > 0);
  const [first] = await page.locator("#captions .card").allInnerTexts();
  assert.match(first, /xe 6[\s\S]*dico \d+[\s\S]*PAC-S/);
  await close();
});

for (const [size, colorScheme] of [["desktop", "light"], ["desktop", "dark"], ["phone", "light"], ["phone", "dark"]]) {
  test(`no accessibility violation: ${size}, ${colorScheme}`, TEST, async () => {
    const { page, close } = await open(run, { size, colorScheme });
    await captionsShown(page);
    assert.deepEqual(await violations(page), []);
    await page.getByRole("button", { name: "Give the admin token" }).click();
    assert.deepEqual(await violations(page), [], "of the dialog");
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `the page is ${overflow} pixels too wide`);
    await close();
  });
}

test("the candidates of an image are weighed, and the gammas add up to one", TEST, async () => {
  const { page, close } = await open(run);
  const gammas = page.locator("#weights meter");
  await gammas.first().waitFor();
  // Read at once: the next step replaces them.
  const { candidates, gamma } = await page.evaluate(() => ({
    candidates: document.querySelectorAll("#weights tbody tr").length,
    gamma: [...document.querySelectorAll("#weights meter")].map(({ value }) => value),
  }));
  assert.deepEqual([candidates, gamma.length], [3, 2], "one of three beams is chosen");
  assert.ok(Math.abs(gamma[0] + gamma[1] - 1) < 1e-5, `${gamma}`);
  await close();
});

test("all that can be used is reached by the keyboard", TEST, async () => {
  const { page, close } = await open(run);
  await captionsShown(page);
  // Nothing is drawn anew while the run is paused: what is drawn anew loses the keyboard's focus.
  await command("pause");
  await page.waitForFunction(() => document.querySelector("#state").textContent.startsWith("paused"));
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  const all = await page.evaluate(() => {
    const usable = [...document.querySelectorAll("a, button, select, summary, input, [tabindex='0']")];
    const shown = usable.filter((element) => !element.disabled && element.checkVisibility());
    shown.forEach((element, index) => { element.dataset.usable = index; });
    return shown.length;
  });
  const reached = new Set();
  for (let press = 0; press < all + 30; press += 1) {
    const usable = await page.evaluate(() => document.activeElement.dataset.usable);
    if (usable !== undefined) reached.add(usable);
    await page.keyboard.press("Tab");
  }
  assert.ok(reached.size >= all * 0.8, `${reached.size} of ${all} were reached`);
  const loss = page.getByRole("slider", { name: "Loss by step" });
  await loss.focus();
  await page.keyboard.press("Home");
  assert.match(await loss.getAttribute("aria-valuetext"), /^steps? 1\b.*: \d/);
  const before = await loss.getAttribute("aria-valuenow");
  await page.keyboard.press("ArrowRight");
  assert.equal(Number(await loss.getAttribute("aria-valuenow")), Number(before) + 1);
  await command("resume");
  await close();
});

test("buttons steer the run with the admin token, and not without", TEST, async () => {
  const { page, close } = await open(run, { expected: /status of 401/ });
  const give = async (token) => {
    await page.getByLabel("Token", { exact: true }).fill(token);
    await page.getByRole("button", { name: "Use it" }).click();
  };
  const noticed = (text) => page.waitForFunction((expected) => document.querySelector("#notice").textContent.includes(expected), text);
  await page.getByRole("button", { name: "Pause" }).click();
  await give("not-the-token-of-anybody");
  await noticed("wants its admin token");
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "a wrong token is forgotten");
  await page.getByRole("button", { name: "Pause" }).click();
  await give(ADMIN);
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
  const other = await page.context().newPage();
  await other.goto(run.http);
  assert.equal(await other.evaluate(() => sessionStorage.length), 0, "another tab knows nothing of it");
  await close();
});

test("a worker is drained from its row", TEST, async () => {
  place.work(run, 1);
  const { page, close } = await open(run);
  await page.getByRole("button", { name: "Drain rank 1", exact: true }).click();
  await page.locator("dialog button.main").click();
  await page.getByLabel("Token", { exact: true }).fill(ADMIN);
  await page.getByRole("button", { name: "Use it" }).click();
  await page.waitForFunction(() => !document.querySelector('[aria-label="Drain rank 1"]'));
  await page.waitForFunction(() => document.querySelector("#state").textContent === "running");
  await close();
});

test(`a run of ${MANY.toLocaleString("en")} steps is shown at once, and markup in it is text`, TEST, async () => {
  const file = place.runFile("long", 200_000);
  const empty = await place.serve(file, { admin: false });
  await empty.process.stop();
  place.fill("long", MANY);
  const served = await place.serve(file, { admin: false });
  const begun = Date.now();
  // A picture that there is not, for which the page shows its name.
  const { page, check } = await open(served, { expected: /status of 404/ });
  await page.waitForFunction((last) => document.querySelector("#charts-note").textContent.includes(`to ${last}`), MANY.toLocaleString("en"));
  const loaded = (Date.now() - begun) / 1000;
  const used = served.process.cpuSeconds();
  const times = [];
  let bytes = 0;
  for (let time = 0; time < 5; time += 1) {
    const asked = performance.now();
    bytes = (await (await fetch(`${served.http}/api/history?stage=2`)).arrayBuffer()).byteLength;
    times.push(performance.now() - asked);
  }
  const again = Date.now();
  await page.reload();
  await page.waitForFunction((last) => document.querySelector("#charts-note").textContent.includes(`to ${last}`), MANY.toLocaleString("en"));
  console.log(`${MANY} steps: shown ${loaded.toFixed(1)} s after a coordinator came to its journal (${used.toFixed(1)} s of its processor time), ${((Date.now() - again) / 1000).toFixed(1)} s after a reload; history in ${Math.min(...times).toFixed(0)} to ${Math.max(...times).toFixed(0)} ms, ${(bytes / 1000).toFixed(0)} kB`);

  await page.waitForSelector("#captions .card");
  const card = page.locator("#captions .card").first();
  assert.match(await card.locator(".caption.after").innerText(), /<script>window\.hurt = 1<\/script><img src=x/);
  assert.match(await page.locator("#events").innerText(), /<img src=x onerror=/);
  assert.equal(await page.evaluate(() => window.hurt), undefined);
  assert.equal(await page.locator("#captions script, #captions img[src='x'], #events img").count(), 0);
  await page.waitForSelector("#captions .placeholder");

  assert.ok(await page.getByRole("button", { name: "Pause" }).isDisabled());
  assert.match(await page.locator("#controls .hint").innerText(), /--admin-token-file/);
  const refused = await fetch(`${served.http}/api/pause`, { method: "POST", headers: { authorization: `Bearer ${ADMIN}` } });
  assert.equal(refused.status, 403);
  assert.deepEqual(await violations(page), []);
  await check();

  await served.process.stop();
  await page.waitForFunction(() => document.querySelector("#link").textContent.includes("does not answer"));
  assert.match(await page.locator("#state").innerText(), /the coordinator was stopped/);
  await page.context().close();
});
