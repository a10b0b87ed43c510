// What callers say of one call: time, signal, priority; and how long it may take.

import { randomBytes } from "node:crypto";
import { Cancelled, InvalidRequest, VllmportError } from "./errors.js";
import type { CallHeader, Connection } from "./connection.js";

/** Profile → milliseconds for the whole call, waiting in the queue included. */
export const PROFILES = {
  default: 120_000,
  streaming: 1_800_000,
  ml_inference: 600_000,
  batch_job: 3_600_000,
} as const;

export interface CallOptions {
  /** Milliseconds for the whole call; Infinity for no limit. Wins over `timeoutProfile`. */
  timeout?: number;
  /** A named time-out; "ml_inference" if neither is given. */
  timeoutProfile?: keyof typeof PROFILES;
  /** Gives the call up when it is aborted. */
  signal?: AbortSignal;
  /** Lower runs first. */
  priority?: number;
  /** Your own name for the call, for logs and results. */
  requestId?: string;
  /** Run the call again, within its time, if its worker is lost; a stream goes on where it was. */
  retry?: "resume";
}

const MAX_TIMEOUT_MS = 2_000_000_000;

/** Return the milliseconds a call may take; null for no limit. Throws InvalidRequest. */
export function timeoutOf(options: CallOptions, profile: keyof typeof PROFILES = "ml_inference"): number | null {
  const chosen = options.timeoutProfile ?? profile;
  if (!(chosen in PROFILES)) {
    throw refusal("timeoutProfile", chosen, `unknown timeout profile ${chosen}; known: ${Object.keys(PROFILES)}`);
  }
  const timeout = options.timeout ?? PROFILES[chosen];
  if (typeof timeout !== "number" || !(timeout > 0)) {
    throw refusal("timeout", timeout, "timeout is a positive number of milliseconds, Infinity for none");
  }
  return timeout === Infinity ? null : Math.min(timeout, MAX_TIMEOUT_MS);
}

/** Build the header of a call. */
export function headerOf(model: string, verb: string, options: CallOptions, window = 0): CallHeader {
  return {
    model,
    verb,
    window,
    priority: options.priority ?? 0,
    request_id: options.requestId ?? randomBytes(6).toString("hex"),
    retry: options.retry ?? "",
  };
}

/** Make a call and wait for its one result; items, if it has any, go to `onItem`. */
export function resultOf(
  connection: Connection,
  header: CallHeader,
  args: unknown,
  timeoutMs: number | null,
  signal?: AbortSignal,
  onItem?: (value: unknown) => void,
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) throw cancelled(signal);
    const end = () => signal?.removeEventListener("abort", abort);
    const id = connection.submit(header, args, timeoutMs, {
      ...(onItem === undefined ? {} : { item: onItem }),
      done: (value) => {
        end();
        resolve(value);
      },
      failed: (error) => {
        end();
        reject(error);
      },
    });
    const abort = () => {
      connection.abandon(id);
      reject(cancelled(signal));
    };
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** Wait for something that others may wait for as well; an abort ends this waiting alone. */
export async function untilAborted<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return promise;
  let abort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(cancelled(signal));
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

export function cancelled(signal?: AbortSignal): VllmportError {
  return new Cancelled("the caller cancelled the call", { cause: signal?.reason });
}

export function refusal(parameter: string, value: unknown, words: string): InvalidRequest {
  return new InvalidRequest(words, { details: { parameter, value } });
}
