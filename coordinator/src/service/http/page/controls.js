// Steering the run. Commands need the admin token, which this tab keeps until it is closed.

import { command, token } from "./api.js";
import { byId, el, mark, say } from "./dom.js";

const HINT = "This coordinator was served without an admin token, so this page only looks. Serve with --admin-token-file FILE to steer from here.";
const NOTICE = 8000;

export class Controls {
  constructor() {
    const button = (name, label, title) => el("button", { type: "button", title, on: { click: () => this.run(name) } }, label);
    this.buttons = {
      pause: button("pause", "Pause", "Let what is granted be done, save it, and hold the run"),
      resume: button("resume", "Resume", "Let the paused run go on"),
      checkpoint: button("checkpoint", "Checkpoint", "Save the state that the run is about to reach"),
      evaluate: button("evaluate", "Evaluate", "Evaluate the state that the run is about to reach"),
    };
    this.token = el("button", { type: "button", on: { click: () => this.askToken() } });
    this.hint = el("p", { class: "hint", hidden: true }, HINT);
    byId("controls").append(...Object.values(this.buttons), this.token, this.hint);
    this.dialog = byId("dialog");
    this.allowed = false;
    this.showToken();
  }

  update(snapshot) {
    this.allowed = snapshot.commands;
    this.hint.hidden = snapshot.commands;
    this.token.hidden = !snapshot.commands;
    const paused = snapshot.state === "paused";
    const over = ["finished", "failed"].includes(snapshot.state);
    this.buttons.pause.hidden = paused;
    this.buttons.resume.hidden = !paused;
    for (const button of Object.values(this.buttons)) button.disabled = !this.allowed || over;
  }

  /** Asks a worker to leave, if somebody is sure. */
  drain(rank) {
    const go = el("button", { type: "submit", class: "main" }, `Drain rank ${rank}`);
    this.open(`Drain rank ${rank}?`, [
      el("p", {}, "It leaves after the step in flight, and the others go on without it. Where fewer workers are left than the run needs, the run waits."),
    ], go, () => this.run("drain", { rank }));
  }

  /** Sends a command; asks for the token where it lacks or is wrong. */
  async run(name, body) {
    if (!token.get()) {
      this.askToken(() => this.run(name, body));
      return;
    }
    try {
      const { message } = await command(name, body);
      this.notice(message, "good");
    } catch (error) {
      if (error.status === 401) {
        token.forget();
        this.showToken();
      }
      this.notice(`${name}: ${error.message}`, "bad");
    }
  }

  askToken(then) {
    const held = Boolean(token.get());
    const input = el("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, minlength: "16" });
    const forget = held ? el("button", { type: "button", on: { click: () => {
      token.forget();
      this.showToken();
      this.dialog.close();
    } } }, "Forget the token") : null;
    this.open("Admin token", [
      el("p", {}, "That of the coordinator's --admin-token-file. This tab keeps it until it is closed."),
      el("label", { for: "token" }, "Token"), input,
    ], el("button", { type: "submit", class: "main" }, "Use it"), () => {
      token.set(input.value.trim());
      this.showToken();
      then?.();
    }, forget);
  }

  open(title, content, submit, act, more = null) {
    const cancel = el("button", { type: "button", on: { click: () => this.dialog.close() } }, "Cancel");
    const form = el("form", { on: { submit: (event) => {
      event.preventDefault();
      this.dialog.close();
      act();
    } } }, el("h2", { id: "dialog-title" }, title), ...content, el("div", { class: "buttons" }, more, cancel, submit));
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
  }

  showToken() {
    say(this.token, token.get() ? "Token ✓" : "Token…");
    mark(this.token, "aria-label", token.get() ? "Admin token: known to this tab" : "Give the admin token");
  }

  notice(text, tone) {
    const notice = byId("notice");
    say(notice, text);
    mark(notice, "data-tone", tone);
    notice.hidden = false;
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => { notice.hidden = true; }, NOTICE);
  }
}
