// The deltas of one call, as they are generated.

import { cancelled } from "./calls.js";
import type { CallHeader, Connection } from "./connection.js";
import type { VllmportError } from "./errors.js";
import type { Delta, RequestOutput } from "./results.js";

/** A connection to call on, and the milliseconds left for the call. */
export interface Ready {
  connection: Connection;
  left: number | null;
}

/**
 * Iterate with `for await`; leaving the loop early cancels the call. `result` holds the summary,
 * without outputs, once the stream has ended.
 */
export class Stream implements AsyncIterableIterator<Delta> {
  result: RequestOutput | undefined;
  #deltas: Delta[] = [];
  #window: number;
  #taken = 0;
  #ended = false;
  #error: VllmportError | undefined;
  #wake: () => void = () => {};
  #abandon: () => void = () => {};
  #grant: (count: number) => void = () => {};

  /** @internal The call goes out as soon as `connect` gives a connection. */
  constructor(
    connect: () => Promise<Ready>,
    header: CallHeader & { window: number },
    args: unknown,
    signal?: AbortSignal,
  ) {
    const abort = () => {
      this.#abandon();
      this.#end(cancelled(signal));
    };
    const start = connect().then(({ connection, left }) => {
      if (this.#ended) return;
      const id = connection.submit(header, args, left, {
        item: (value) => {
          this.#deltas.push(...(value as { outputs: Delta[] }).outputs);
          this.#wake();
        },
        done: (value) => {
          this.result = value as RequestOutput;
          this.#end();
        },
        failed: (error) => this.#end(error),
      });
      this.#abandon = () => {
        signal?.removeEventListener("abort", abort);
        connection.abandon(id);
      };
      this.#grant = (count) => connection.credit(id, count);
    });
    start.catch((error: VllmportError) => this.#end(error));
    this.#window = header.window;
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Delta, undefined>> {
    while (this.#deltas.length === 0) {
      if (this.#error !== undefined) {
        const error = this.#error;
        this.#error = undefined; // told once; after that the stream is at its end
        throw error;
      }
      if (this.#ended) return { done: true, value: undefined };
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const value = this.#deltas.shift() as Delta;
    this.#taken += 1;
    if (this.#taken >= this.#window / 2 && !this.#ended) {
      this.#grant(this.#taken); // half of the window is read: the sender may go on
      this.#taken = 0;
    }
    return { done: false, value };
  }

  async return(): Promise<IteratorResult<Delta, undefined>> {
    if (!this.#ended) {
      this.#end();
      this.#abandon();
    }
    this.#deltas = [];
    return { done: true, value: undefined };
  }

  #end(error?: VllmportError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#wake();
  }
}
