// A temporary folder with a synthetic data set, and coordinators and workers that end with the
// test.

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Time limit of a wait, in milliseconds. Long enough for a busy machine. */
const WAIT_TIMEOUT = 600_000;

/** The admin token of these tests. */
export const ADMIN_TOKEN = "the-admin-token-of-the-page-tests";

/**
 * Calls `poll` until it returns a truthy value, and returns that. `description` names it in the
 * error.
 */
export async function waitFor(description, poll) {
  const start = Date.now();
  for (;;) {
    const value = await poll();
    if (value) return value;
    if (Date.now() - start > WAIT_TIMEOUT) throw new Error(`${description} did not appear within ${WAIT_TIMEOUT / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A running program. */
class Process {
  /** Starts a program; its log goes to the file `log`. */
  constructor(name, options, log) {
    this.log = log;
    const file = openSync(log, "w");
    const environment = Object.entries(process.env).filter(([key]) => !key.startsWith("DICO_"));
    const env = { ...Object.fromEntries(environment), OMP_NUM_THREADS: "1" };
    this.child = spawn(join(process.env.PROGRAMS, name), options, { stdio: ["ignore", "pipe", file], env });
    this.stdout = "";
    this.child.stdout.on("data", (data) => { this.stdout += data; });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
  }

  /** The CPU time used so far. */
  cpuSeconds() {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, "utf8").split(") ")[1].split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }

  async stop(signal = "SIGTERM") {
    if (this.child.exitCode === null) this.child.kill(signal);
    await this.exited;
  }
}

export class TestCluster {
  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "dico-page-"));
    this.processes = [];
    const result = spawnSync(join(process.env.PROGRAMS, "worker"), ["synthesize", "--out", this.path("data"), "--images", "60", "--seed", "3"]);
    if (result.status !== 0) throw new Error(`worker synthesize failed: ${result.stderr}`);
    writeFileSync(this.path("admin-token"), ADMIN_TOKEN);
  }

  path(name) {
    return join(this.folder, name);
  }

  /** Writes a run file whose last stage has this number of steps. Returns its path. */
  writeRunFile(name, steps) {
    const optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    const path = this.path(`${name}.yaml`);
    writeFileSync(path, `name: ${name}
seed: 11
output: ${this.path(name)}
workers: { min: 1, max: 2 }
data:
  karpathy: { annotations: ${this.path("data/dataset.json")}, images: ${this.path("data/images")} }
  scenes: ${this.path("data/scenes.json")}
vocabulary: corpus
evaluator: { preset: tiny }
captioner: { preset: tiny, dropout: 0.0 }
decoding: { beams: 3, max_length: 12 }
stages:
  - { name: evaluator, objective: contrastive, steps: 4, batch: 12, ${optimizer} }
  - { name: xe, objective: cross_entropy, steps: 6, batch: 12, ${optimizer} }
  - { name: dico, objective: dico, steps: ${steps}, batch: 6, evaluate_every: 25, metric: pac_s, ${optimizer} }
`);
    return path;
  }

  /** Starts a coordinator for a run file. Returns the process and its URLs. */
  async serve(runFile, { admin = true } = {}) {
    const options = ["serve", "--config", runFile, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    const process = new Process("coordinator", [...options, ...(admin ? ["--admin-token-file", this.path("admin-token")] : [])], this.path("coordinator.log"));
    this.processes.push(process);
    const line = await waitFor("the address of the coordinator", () => {
      if (process.child.exitCode !== null) throw new Error(`the coordinator exited: ${readFileSync(process.log, "utf8")}`);
      return /listening on grpc=(\S+) http=(\S+)/.exec(process.stdout);
    });
    return { process, grpc: `http://${line[1]}`, http: `http://${line[2]}` };
  }

  /** Starts a worker that joins a coordinator. */
  startWorker({ grpc }, workerId) {
    const process = new Process("worker", ["join", "--coordinator", grpc, "--rank", String(workerId), "--threads", "1"], this.path(`worker-${workerId}.log`));
    this.processes.push(process);
    return process;
  }

  /**
   * Adds steps, and evaluations whose captions contain markup, to the journal of a run that is not
   * being served.
   */
  fillJournal(name, steps) {
    const result = spawnSync("python3", ["fill_journal.py", join(this.path(name), "coordinator", "journal.sqlite"), String(steps)], { cwd: import.meta.dirname });
    if (result.status !== 0) throw new Error(`fill_journal.py failed: ${result.stderr}`);
  }

  /** Ends all processes and removes the folder. */
  async close() {
    // Workers end first: otherwise their coordinator would make them save.
    for (const process of this.processes.reverse()) await process.stop("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
