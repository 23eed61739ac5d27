// Buttons that send commands. Commands require the admin token, which the browser keeps until the
// tab is closed.

import { adminToken, sendCommand } from "./api.js";
import { byId, el, setAttribute, setText } from "./dom.js";

const READ_ONLY_HINT = "This web page is read-only, because the coordinator has no admin token. Serve with --admin-token-file FILE to send commands from here.";
/** Milliseconds for which a notice is shown. */
const NOTICE_DURATION_MS = 8000;

export class Controls {
  constructor() {
    const button = (name, label, title) => el("button", { type: "button", title, on: { click: () => this.send(name) } }, label);
    this.buttons = {
      pause: button("pause", "Pause", "Complete the steps that workers were told to train, save a checkpoint, and pause the run"),
      resume: button("resume", "Resume", "Continue the paused run"),
      checkpoint: button("checkpoint", "Checkpoint", "Save a checkpoint after the steps that workers were told to train"),
      evaluate: button("evaluate", "Evaluate", "Evaluate the captioner after the steps that workers were told to train"),
    };
    this.tokenButton = el("button", { type: "button", on: { click: () => this.promptForToken() } });
    this.hint = el("p", { class: "hint", hidden: true }, READ_ONLY_HINT);
    byId("controls").append(...Object.values(this.buttons), this.tokenButton, this.hint);
    this.dialog = byId("dialog");
    /** Whether the coordinator accepts commands over HTTP: it has an admin token. */
    this.areCommandsAllowed = false;
    this.showTokenState();
  }

  update(snapshot) {
    this.areCommandsAllowed = snapshot.commands;
    this.hint.hidden = snapshot.commands;
    this.tokenButton.hidden = !snapshot.commands;
    const isPaused = snapshot.state === "paused";
    const isOver = ["finished", "failed"].includes(snapshot.state);
    this.buttons.pause.hidden = isPaused;
    this.buttons.resume.hidden = !isPaused;
    for (const button of Object.values(this.buttons)) button.disabled = !this.areCommandsAllowed || isOver;
  }

  /** Drains a worker after the user has confirmed it. */
  drain(workerId) {
    const submit = el("button", { type: "submit", class: "primary" }, `Drain worker ${workerId}`);
    this.openDialog(`Drain worker ${workerId}?`, [
      el("p", {}, "The worker leaves after the step in flight, and the other workers continue. If fewer than workers.min remain, the run waits."),
    ], submit, () => this.send("drain", { rank: workerId }));
  }

  /**
   * Sends a command. Prompts for the token if there is none; forgets a token that the coordinator
   * refuses.
   */
  async send(name, body) {
    if (!adminToken.get()) {
      this.promptForToken(() => this.send(name, body));
      return;
    }
    try {
      const { message } = await sendCommand(name, body);
      this.showNotice(message, "good");
    } catch (error) {
      if (error.status === 401) {
        adminToken.remove();
        this.showTokenState();
      }
      this.showNotice(`${name}: ${error.message}`, "bad");
    }
  }

  /** Prompts for the admin token. Calls `onToken` when the user has entered one. */
  promptForToken(onToken) {
    const hasToken = Boolean(adminToken.get());
    const input = el("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, minlength: "16" });
    const forget = hasToken ? el("button", { type: "button", on: { click: () => {
      adminToken.remove();
      this.showTokenState();
      this.dialog.close();
    } } }, "Forget the token") : null;
    this.openDialog("Admin token", [
      el("p", {}, "The token in the coordinator's --admin-token-file. The browser keeps it until this tab is closed."),
      el("label", { for: "token" }, "Token"), input,
    ], el("button", { type: "submit", class: "primary" }, "Use token"), () => {
      adminToken.set(input.value.trim());
      this.showTokenState();
      onToken?.();
    }, forget);
  }

  /** Opens a dialog with these elements. `onSubmit` is called when the user confirms. */
  openDialog(title, content, submit, onSubmit, extraButton = null) {
    const cancel = el("button", { type: "button", on: { click: () => this.dialog.close() } }, "Cancel");
    const form = el("form", { on: { submit: (event) => {
      event.preventDefault();
      this.dialog.close();
      onSubmit();
    } } }, el("h2", { id: "dialog-title" }, title), ...content, el("div", { class: "buttons" }, extraButton, cancel, submit));
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
  }

  showTokenState() {
    setText(this.tokenButton, adminToken.get() ? "Token ✓" : "Token…");
    setAttribute(this.tokenButton, "aria-label", adminToken.get() ? "Admin token: stored in this tab" : "Enter the admin token");
  }

  showNotice(text, tone) {
    const notice = byId("notice");
    setText(notice, text);
    setAttribute(notice, "data-tone", tone);
    notice.hidden = false;
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => { notice.hidden = true; }, NOTICE_DURATION_MS);
  }
}
