// The page: every look at the run that the coordinator tells of goes to the parts that show it.

import { answered, follow } from "./api.js";
import { Captions } from "./captions.js";
import { Controls } from "./controls.js";
import { Curves } from "./curves.js";
import { byId, mark, say } from "./dom.js";
import { Evaluations } from "./evaluations.js";
import * as events from "./events.js";
import { clock } from "./format.js";
import { Overview } from "./overview.js";
import { Weights } from "./weights.js";
import { Workers } from "./workers.js";

const evaluations = new Evaluations();
const captions = new Captions(evaluations);
const controls = new Controls();
const curves = new Curves();
const overview = new Overview((stage) => {
  // Whoever chooses the present stage follows the run again.
  chosen = stage === latest?.stage ? null : stage;
  show();
});
const weights = new Weights();
const workers = new Workers((rank) => controls.drain(rank));

/** The stage whose curves somebody chose. */
let chosen = null;
/** The last look at the run. */
let latest = null;
/** By kind, the part of the journal that is shown. */
const shown = {};

function show() {
  if (!latest) return;
  // Another run may have taken the place of the one that was looked at.
  if (chosen >= latest.stages.length) chosen = null;
  const stage = chosen ?? latest.stage;
  overview.update(latest, stage, evaluations.headline(latest.stage));
  controls.update(latest);
  weights.update(latest);
  workers.update(latest, controls.allowed);
  curves.update(latest, stage, evaluations.selected(stage)?.step ?? null);
}

/** Brings a part up to date if the journal has more for it; one question at a time, and again with the next look if it fails. */
async function refresh(kind, read) {
  // Of another era what was shown may not hold any more, however much of it there is.
  const version = `${latest.curves.era}:${latest.marks[kind]}`;
  if (shown[kind] === version || shown[`${kind} asked`]) return;
  shown[`${kind} asked`] = true;
  try {
    // Where the coordinator is busy or away, which the header says, the next look asks again.
    if (await answered(read)) shown[kind] = version;
  } finally {
    shown[`${kind} asked`] = false;
  }
}

function look(snapshot) {
  latest = snapshot;
  say(byId("link"), `live · ${clock(snapshot.at)}`);
  mark(byId("link"), "data-tone", "good");
  show();
  refresh("events", () => events.refresh());
  refresh("evaluations", async () => {
    await evaluations.refresh(latest);
    captions.update(latest.stage, latest.curves.era);
    show();
  });
}

function lost() {
  const over = ["finished", "failed"].includes(latest?.state);
  const since = latest ? `: last heard at ${clock(latest.at)}` : "";
  say(byId("link"), over ? `the coordinator has ended at ${clock(latest.at)}` : `the coordinator does not answer${since}`);
  mark(byId("link"), "data-tone", "warn");
}

follow(look, lost);
