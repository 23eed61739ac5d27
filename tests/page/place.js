// A folder with a small world in it, and coordinators and workers that end with the test.

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Longer than any wait on a busy machine, in milliseconds. */
const PATIENCE = 600_000;

/** The admin token of these tests. */
export const ADMIN = "the-admin-token-of-the-page-tests";

/** Asks again and again until there is something. */
export async function until(what, ask) {
  const begun = Date.now();
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() - begun > PATIENCE) throw new Error(`waited in vain for ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

/** A process that the test has started. */
class Process {
  constructor(name, options, log) {
    this.log = log;
    const file = openSync(log, "w");
    const environment = Object.entries(process.env).filter(([key]) => !key.startsWith("DICO_"));
    const env = { ...Object.fromEntries(environment), OMP_NUM_THREADS: "1" };
    this.child = spawn(join(process.env.PROGRAMS, name), options, { stdio: ["ignore", "pipe", file], env });
    this.said = "";
    this.child.stdout.on("data", (data) => { this.said += data; });
    this.ended = new Promise((end) => this.child.once("exit", end));
  }

  /** Processor time that it has used so far. */
  cpuSeconds() {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, "utf8").split(") ")[1].split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }

  async stop(signal = "SIGTERM") {
    if (this.child.exitCode === null) this.child.kill(signal);
    await this.ended;
  }
}

export class Place {
  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "dico-page-"));
    this.processes = [];
    const drawn = spawnSync(join(process.env.PROGRAMS, "worker"), ["synthesize", "--out", this.path("world"), "--images", "60", "--seed", "3"]);
    if (drawn.status !== 0) throw new Error(`no world: ${drawn.stderr}`);
    writeFileSync(this.path("admin-token"), ADMIN);
  }

  path(name) {
    return join(this.folder, name);
  }

  /** Writes a run file with a last stage of so many steps. */
  runFile(name, steps) {
    const optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    const path = this.path(`${name}.yaml`);
    writeFileSync(path, `name: ${name}
seed: 11
output: ${this.path(name)}
workers: { min: 1, max: 2 }
data:
  karpathy: { annotations: ${this.path("world/dataset.json")}, images: ${this.path("world/images")} }
  scenes: ${this.path("world/scenes.json")}
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

  /** Serves a run file; its URLs. */
  async serve(runFile, { admin = true } = {}) {
    const options = ["serve", "--config", runFile, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    const process = new Process("coordinator", [...options, ...(admin ? ["--admin-token-file", this.path("admin-token")] : [])], this.path("coordinator.log"));
    this.processes.push(process);
    const line = await until("the coordinator", () => {
      if (process.child.exitCode !== null) throw new Error(`the coordinator ended: ${readFileSync(process.log, "utf8")}`);
      return /listening on grpc=(\S+) http=(\S+)/.exec(process.said);
    });
    return { process, grpc: `http://${line[1]}`, http: `http://${line[2]}` };
  }

  /** A worker of a coordinator. */
  work({ grpc }, rank) {
    const process = new Process("worker", ["join", "--coordinator", grpc, "--rank", String(rank), "--threads", "1"], this.path(`worker-${rank}.log`));
    this.processes.push(process);
    return process;
  }

  /** Fills the journal of a run that is not served with so many steps, and an evaluation with captions that are markup. */
  fill(name, steps) {
    const filled = spawnSync("python3", ["fill.py", join(this.path(name), "coordinator", "journal.sqlite"), String(steps)], { cwd: import.meta.dirname });
    if (filled.status !== 0) throw new Error(`the journal cannot be filled: ${filled.stderr}`);
  }

  async leave() {
    // Workers first: their coordinator would have them save.
    for (const process of this.processes.reverse()) await process.stop("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
