// Keeps a client connected: opens a connection when one is needed, also after a loss.

import { setTimeout as pause } from "node:timers/promises";
import { ConnectFailed, PoolClosed } from "./errors.js";
import { Connection } from "./connection.js";
import type { ClientKeys } from "./keys.js";

const FIRST_PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 500;

export class Link {
  #opening: Promise<Connection> | undefined;
  #connection: Connection | undefined;
  #closed = false;

  /** `patienceMs`: how long to try again where nobody answers; a supervisor may be restarting. */
  constructor(
    readonly endpoint: string,
    readonly patienceMs: number,
    readonly keys?: ClientKeys,
  ) {}

  /**
   * Return a connection that is alive, opened now if need be.
   * Throws ConnectFailed, PermissionDenied, PoolClosed.
   */
  async connection(patienceMs: number | null): Promise<Connection> {
    if (this.#closed) throw new PoolClosed("this client was closed");
    if (this.#connection?.alive) return this.#connection;
    this.#opening ??= this.#open(Math.min(this.patienceMs, patienceMs ?? Infinity)).finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#opening?.catch(() => undefined);
    await this.#connection?.close();
  }

  async #open(patienceMs: number): Promise<Connection> {
    const end = performance.now() + patienceMs;
    for (let wait = FIRST_PAUSE_MS; ; wait = Math.min(2 * wait, LONGEST_PAUSE_MS)) {
      try {
        this.#connection = await Connection.open(this.endpoint, this.keys);
        return this.#connection;
      } catch (error) {
        const left = end - performance.now();
        if (!(error instanceof ConnectFailed) || left <= 0 || this.#closed) throw error;
        await pause(Math.min(wait, left));
      }
    }
  }
}
