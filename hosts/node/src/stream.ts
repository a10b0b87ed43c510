// The items of one call, as they come.

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
 * Iterate with `for await`; leaving the loop early cancels the call. `result` holds what the call
 * ended with.
 */
export class ItemStream<T, R> implements AsyncIterableIterator<T> {
  result: R | undefined;
  #items: T[] = [];
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
    itemsOf: (value: unknown) => T[],
    resultOf: (value: unknown) => R,
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
          this.#items.push(...itemsOf(value));
          this.#wake();
        },
        done: (value) => {
          this.result = resultOf(value);
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

  async next(): Promise<IteratorResult<T, undefined>> {
    while (this.#items.length === 0) {
      if (this.#error !== undefined) {
        const error = this.#error;
        this.#error = undefined; // told once; after that the stream is at its end
        throw error;
      }
      if (this.#ended) return { done: true, value: undefined };
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const value = this.#items.shift() as T;
    this.#taken += 1;
    if (this.#taken >= this.#window / 2 && !this.#ended) {
      this.#grant(this.#taken); // half of the window is read: the sender may go on
      this.#taken = 0;
    }
    return { done: false, value };
  }

  async return(): Promise<IteratorResult<T, undefined>> {
    if (!this.#ended) {
      this.#end();
      this.#abandon();
    }
    this.#items = [];
    return { done: true, value: undefined };
  }

  #end(error?: VllmportError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#wake();
  }
}

/** The deltas of one call; `result` holds the summary, without outputs, once the stream has ended. */
export class Stream extends ItemStream<Delta, RequestOutput> {
  /** @internal */
  constructor(
    connect: () => Promise<Ready>,
    header: CallHeader & { window: number },
    args: unknown,
    signal?: AbortSignal,
  ) {
    const deltas = (value: unknown) => (value as { outputs: Delta[] }).outputs;
    super(connect, header, args, deltas, (value) => value as RequestOutput, signal);
  }
}
