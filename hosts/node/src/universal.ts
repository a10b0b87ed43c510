// Sessions and refs: any documented object of vLLM, used in the worker where it lives.

import type { Arguments } from "./api.js";
import { type CallOptions, headerOf, refusal, resultOf, timeoutOf } from "./calls.js";
import type { CallHeader } from "./connection.js";
import { SessionLost } from "./errors.js";
import { ItemStream, type Ready } from "./stream.js";
import { Ref, Tuple } from "./values.js";

const WINDOW = 256;

let sessions = 0;

export interface SessionOptions {
  /** With a name, other clients of the same user may use the session, for `ttl` after its last call. */
  name?: string;
  /** What becomes of a call whose session's worker has no room; "hint" if not given. */
  affinity?: "hint" | "strict_queue" | "strict_fail_fast";
  /** Milliseconds; only with a name; an hour if not given. */
  ttl?: number;
}

/** Named arguments of a universal call. */
export type Kwargs = Record<string, unknown>;

/** An object in a worker. It is let go of there after it was collected here, or by `release`. */
export class RemoteRef extends Ref {
  #session: Session;

  /** @internal */
  constructor(ref: Ref, session: Session) {
    super(ref.session, ref.worker, ref.number, ref.type);
    this.#session = session;
  }

  /** An attribute; `name` may have dots. */
  attr(name: string, options?: CallOptions): Promise<unknown> {
    return this.#session.run("ffi.attr", { ref: this, name }, options);
  }

  async setAttr(name: string, value: unknown, options?: CallOptions): Promise<void> {
    await this.#session.run("ffi.set_attr", { ref: this, name, value }, options);
  }

  method(name: string, args: unknown[] = [], kwargs: Kwargs = {}, options?: CallOptions): Promise<unknown> {
    return this.#session.run("ffi.method", { ref: this, name, args, kwargs }, options);
  }

  /** Call a method that gives an iterator; leaving the loop early ends the call. */
  stream(name: string, args: unknown[] = [], kwargs: Kwargs = {}, options?: CallOptions): ItemStream<unknown, unknown> {
    return this.#session.open("ffi.method", { ref: this, name, args, kwargs }, options);
  }

  /** `object[key]`. */
  item(key: unknown, options?: CallOptions): Promise<unknown> {
    return this.#session.run("ffi.item", { ref: this, key }, options);
  }

  /** Let go of the object now; a second time does nothing. */
  release(options?: CallOptions): Promise<void> {
    return this.#session.release([this], options);
  }

  [Symbol.asyncIterator](): ItemStream<unknown, unknown> {
    return this.#session.open("ffi.iterate", { ref: this });
  }
}

/** Owns the refs that its calls return; `llm.session()` makes one. */
export class Session {
  #model: string;
  #ready: (options: CallOptions) => Promise<Ready>;
  #terms: { session: string; affinity: string; ttl_ms: number };
  #dropped: number[] = [];
  #latest = ""; // refs of a session that is over need no release
  #collected = new FinalizationRegistry<{ session: string; number: number }>(({ session, number }) => {
    if (session === this.#latest) this.#dropped.push(number);
  });

  /** @internal */
  constructor(model: string, ready: (options: CallOptions) => Promise<Ready>, options: SessionOptions) {
    const { name, affinity = "hint", ttl } = options;
    if (ttl !== undefined && (name === undefined || !(ttl > 0))) {
      throw refusal("ttl", ttl, "ttl is milliseconds above 0, for a session with a name");
    }
    const ttl_ms = name === undefined ? 0 : Math.ceil(ttl ?? 3_600_000);
    this.#model = model;
    this.#ready = ready;
    this.#terms = { session: name ?? `#${(sessions += 1)}`, affinity, ttl_ms };
  }

  /** Call a function, a class or a method of a class: `call("vllm", "SamplingParams", [], { n: 2 })`. */
  call(module: string, name: string, args: unknown[] = [], kwargs: Kwargs = {}, options?: CallOptions): Promise<unknown> {
    return this.run("ffi.call", { module, name, args, kwargs }, options);
  }

  /** Make an object of one of vLLM's parameter classes, whose arguments have types. */
  async make<M extends keyof Arguments, N extends keyof Arguments[M] & string>(
    module: M,
    name: N,
    kwargs: Arguments[M][N],
    options?: CallOptions,
  ): Promise<RemoteRef> {
    return (await this.call(module, name, [], kwargs as Kwargs, options)) as RemoteRef;
  }

  /** The value of a name in a module. */
  get(module: string, name: string, options?: CallOptions): Promise<unknown> {
    return this.run("ffi.get", { module, name }, options);
  }

  /** Call what gives an iterator; leaving the loop early ends the call. */
  stream(module: string, name: string, args: unknown[] = [], kwargs: Kwargs = {}, options?: CallOptions): ItemStream<unknown, unknown> {
    return this.open("ffi.call", { module, name, args, kwargs }, options);
  }

  /** Let go of objects now, and of those that were collected. */
  async release(refs: Ref[] = [], options?: CallOptions): Promise<void> {
    try {
      await this.run("ffi.release", { refs: refs.map(({ number }) => number) }, options);
    } catch (error) {
      if (!(error instanceof SessionLost)) throw error;
    }
  }

  /** End the session: everything it holds is let go, and the next call begins a new one. */
  async end(options?: CallOptions): Promise<void> {
    await this.run("ffi.end", {}, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#terms.ttl_ms === 0) await this.end();
  }

  /** @internal */
  async run(verb: string, args: Record<string, unknown>, options: CallOptions = {}): Promise<unknown> {
    const { connection, left } = await this.#ready(options);
    const released = this.#dropped.splice(0);
    try {
      const told = { ...args, ...(released.length > 0 && { released }) };
      return this.#adopt(await resultOf(connection, this.#header(verb, options), told, left, options.signal));
    } catch (error) {
      this.#dropped.push(...released); // told another time
      throw error;
    }
  }

  /** @internal */
  open(verb: string, args: Record<string, unknown>, options: CallOptions = {}): ItemStream<unknown, unknown> {
    timeoutOf(options);
    const header = { ...this.#header(verb, options), window: WINDOW };
    const adopt = (value: unknown) => this.#adopt(value);
    return new ItemStream(() => this.#ready(options), header, args, (value) => [adopt(value)], adopt, options.signal);
  }

  #header(verb: string, options: CallOptions): CallHeader {
    return { ...headerOf(this.#model, verb, options), ...this.#terms };
  }

  /** Put handles in place of the refs of a result, one for each object. */
  #adopt(value: unknown, handles = new Map<number, RemoteRef>()): unknown {
    if (value instanceof Ref) return this.#handle(value, handles);
    if (value instanceof Tuple || Array.isArray(value)) {
      for (let index = 0; index < value.length; index++) value[index] = this.#adopt(value[index], handles);
    } else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
      const map = value as Record<string, unknown>;
      for (const key in map) map[key] = this.#adopt(map[key], handles);
    }
    return value;
  }

  #handle(ref: Ref, handles: Map<number, RemoteRef>): RemoteRef {
    if (ref.session !== this.#latest) {
      this.#latest = ref.session;
      this.#dropped = [];
    }
    const known = handles.get(ref.number);
    if (known !== undefined) return known;
    const handle = new RemoteRef(ref, this);
    handles.set(ref.number, handle);
    this.#collected.register(handle, { session: ref.session, number: ref.number });
    return handle;
  }
}
