// The candidates of one image with DiCO's weights: the best is chosen, and the gammas of the others
// add up to one.

import { byId, el, setText } from "./dom.js";
import { formatNumber, formatPercent } from "./format.js";

const COLUMNS = ["Candidate", "Reward", "Gamma"];

export class Candidates {
  constructor() {
    this.body = el("tbody", {});
    const headings = COLUMNS.map((name) => el("th", { scope: "col", class: name.toLowerCase() }, name));
    byId("candidates").append(el("table", {}, el("thead", {}, el("tr", {}, ...headings)), this.body));
  }

  update({ example }) {
    byId("candidates-section").hidden = !example;
    if (!example) return;
    setText(byId("candidates-note"), `of ${example.image}, an image of the last step`);
    const maxReward = Math.max(...example.candidates.map(({ reward }) => reward));
    // If several candidates have the highest reward, DiCO chooses the first of them.
    const chosen = example.candidates.findIndex(({ reward }) => reward === maxReward);
    const rows = example.candidates.map(({ caption, reward, gamma }, index) => el("tr", {},
      el("th", { scope: "row", class: "candidate" }, caption),
      el("td", { class: "reward" }, formatNumber(reward)),
      index === chosen ? el("td", { class: "gamma" }, "chosen") : el("td", { class: "gamma" },
        el("meter", { min: "0", max: "1", value: String(gamma), "aria-label": `Gamma of ${caption}` }), ` ${formatPercent(gamma)}`)));
    this.body.replaceChildren(...rows);
  }
}
