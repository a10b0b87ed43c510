// A pool as a service, in a folder of its own, for the tests to kill.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { ConnectFailed, Pool } from "../src/index.js";

/** How to run the command: VLLMPORT may hold arguments. */
const COMMAND = (process.env["VLLMPORT"] ?? "vllmport").split(" ");

export class Service {
  readonly folder = mkdtempSync("/tmp/vp-node-");
  readonly endpoint = `ipc://${this.folder}/pool.sock`;
  #process: ChildProcess | undefined;

  /** Serve what a pool.toml says, and wait until it answers. */
  async start(toml = "[models.echo]\nmodel = 'echo'\n[policy]\nstandby = false\n"): Promise<void> {
    const config = `${this.folder}/pool.toml`;
    writeFileSync(config, toml);
    const [command, ...args] = [...COMMAND, "serve", "--endpoint", this.endpoint, config];
    this.#process = spawn(command as string, args, {
      stdio: "ignore",
      env: { ...process.env, XDG_RUNTIME_DIR: this.folder, XDG_STATE_HOME: this.folder },
    });
    await eventually(async () => {
      try {
        const pool = await Pool.connect(this.endpoint, { patience: 0 });
        await pool.close();
        return true;
      } catch (error) {
        if (error instanceof ConnectFailed) return false;
        throw error;
      }
    });
  }

  /** Kill the supervisor; its spawner takes the workers along. */
  async kill(): Promise<void> {
    this.#process?.kill("SIGKILL");
    await once(this.#process!, "exit");
  }

  async stop(): Promise<void> {
    if (this.#process?.exitCode === null && this.#process.signalCode === null) {
      this.#process.kill("SIGTERM");
      await once(this.#process, "exit");
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Wait for a condition; fail if it takes too long. */
export async function eventually(condition: () => Promise<boolean> | boolean, seconds = 30): Promise<void> {
  const end = performance.now() + seconds * 1000;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${seconds} s: ${condition}`);
    await pause(20);
  }
}
