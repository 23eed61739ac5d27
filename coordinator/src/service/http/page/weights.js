// How DiCO weighs the candidates of one image: the best is chosen, the others share a weight of one, the gammas.

import { byId, el, say } from "./dom.js";
import { number, percent } from "./format.js";

const COLUMNS = ["Candidate", "Reward", "Gamma"];

export class Weights {
  constructor() {
    this.body = el("tbody", {});
    const head = COLUMNS.map((name) => el("th", { scope: "col", class: name.toLowerCase() }, name));
    byId("weights").append(el("table", {}, el("thead", {}, el("tr", {}, ...head)), this.body));
  }

  update({ example }) {
    byId("weights-section").hidden = !example;
    if (!example) return;
    say(byId("weights-note"), `of ${example.image}, an image of the last step`);
    const best = Math.max(...example.candidates.map(({ reward }) => reward));
    // The first of several best ones is chosen.
    const chosen = example.candidates.findIndex(({ reward }) => reward === best);
    const rows = example.candidates.map(({ caption, reward, gamma }, index) => el("tr", {},
      el("th", { scope: "row", class: "candidate" }, caption),
      el("td", { class: "reward" }, number(reward)),
      index === chosen ? el("td", { class: "gamma" }, "chosen") : el("td", { class: "gamma" },
        el("meter", { min: "0", max: "1", value: String(gamma), "aria-label": `Gamma of ${caption}` }), ` ${percent(gamma)}`)));
    this.body.replaceChildren(...rows);
  }
}
