// The entry point of the web page: passes each snapshot of the run to the components that show it.

import { follow, isAnswered } from "./api.js";
import { Candidates } from "./candidates.js";
import { Captions } from "./captions.js";
import { Controls } from "./controls.js";
import { Curves } from "./curves.js";
import { byId, setAttribute, setText } from "./dom.js";
import { Evaluations } from "./evaluations.js";
import * as events from "./events.js";
import { formatTime } from "./format.js";
import { Overview } from "./overview.js";
import { Workers } from "./workers.js";

const evaluations = new Evaluations();
const captions = new Captions(evaluations);
const candidates = new Candidates();
const controls = new Controls();
const curves = new Curves();
const overview = new Overview((stage) => {
  // Selecting the current stage follows the run again.
  selectedStage = stage === snapshot?.stage ? null : stage;
  render();
});
const workers = new Workers((workerId) => controls.drain(workerId));

/** The stage that the user selected for the curves; null to follow the run. */
let selectedStage = null;
/** The last snapshot of the run. */
let snapshot = null;
/** By kind of rows ("events", "evaluations"): which version of the journal's rows is shown. */
const shownVersions = {};
/** The kinds of rows that are being requested. */
const pendingKinds = new Set();

function render() {
  if (!snapshot) return;
  // Since the last snapshot, a coordinator of another run, with fewer stages, may have started at
  // this address.
  if (selectedStage >= snapshot.stages.length) selectedStage = null;
  const stage = selectedStage ?? snapshot.stage;
  overview.update(snapshot, stage, evaluations.headline(snapshot.stage));
  controls.update(snapshot);
  candidates.update(snapshot);
  workers.update(snapshot, controls.areCommandsAllowed);
  curves.update(snapshot, stage, evaluations.earlyEnd(stage)?.step ?? null);
}

/**
 * Calls `load` if the journal has new rows of this kind. There is one request at a time; the next
 * snapshot repeats a request that has failed.
 */
async function refresh(kind, load) {
  // The version of the curves changes when the run gives up steps. Then rows that are shown may
  // belong to such steps, even if there are no new rows.
  const version = `${snapshot.curves.version}:${snapshot.row_counters[kind]}`;
  if (shownVersions[kind] === version || pendingKinds.has(kind)) return;
  pendingKinds.add(kind);
  try {
    if (await isAnswered(load)) shownVersions[kind] = version;
  } finally {
    pendingKinds.delete(kind);
  }
}

function onSnapshot(newSnapshot) {
  snapshot = newSnapshot;
  setText(byId("connection"), `live · ${formatTime(snapshot.at)}`);
  setAttribute(byId("connection"), "data-tone", "good");
  render();
  refresh("events", () => events.refresh());
  refresh("evaluations", async () => {
    await evaluations.refresh(snapshot);
    captions.update(snapshot.stage, snapshot.curves.version);
    render();
  });
}

function onDisconnect() {
  const isOver = ["finished", "failed"].includes(snapshot?.state);
  const lastUpdate = snapshot ? `: last update at ${formatTime(snapshot.at)}` : "";
  setText(byId("connection"), `${isOver ? "the coordinator has exited" : "the coordinator does not answer"}${lastUpdate}`);
  setAttribute(byId("connection"), "data-tone", "warn");
}

follow(onSnapshot, onDisconnect);
