// One connection to a supervisor: calls go out, their events come back. It lives until either side
// ends it, and never again; `Link` opens the next one.

import { connect as connectSocket } from "node:net";
import { Dealer } from "zeromq";
import {
  ConnectFailed,
  DeadlineExceeded,
  PermissionDenied,
  PoolClosed,
  PoolLost,
  ProtocolError,
  VllmportError,
} from "./errors.js";
import { type ClientKeys, addressOf } from "./keys.js";
import { type Entry, MAX_FRAME, type Message, decode, encode, errorOf } from "./messages.js";
import { unpack } from "./values.js";
import { PRODUCT, PROTOCOL_VERSION } from "./version.js";

const GREETING_MS = 5000;
const PROBE_MS = 1000; // somebody may take to accept a connection
const GRACE_MS = 2000; // after a deadline, before this end gives up on the supervisor's answer
const LAST_WORDS_MS = 20; // messages that came before the end of a connection are read after it

/** What the monitor of a socket reports: that the connection ended, or never began. */
const ENDINGS: ReadonlySet<string> = new Set([
  "disconnect",
  "handshake:error:auth",
  "handshake:error:protocol",
  "handshake:error:other",
]);

/** What a call's events are given to. */
export interface Listener {
  item?(value: unknown): void;
  done(value: unknown): void;
  failed(error: VllmportError): void;
}

export interface CallHeader {
  model: string;
  verb: string;
  window?: number;
  priority?: number;
  request_id?: string;
  retry?: string;
  session?: string;
  affinity?: string;
  ttl_ms?: number;
}

interface OpenCall {
  listener: Listener;
  timer: NodeJS.Timeout | undefined;
}

export class Connection {
  /** Names the run of the supervisor that this connection reaches. */
  epoch = "";
  #socket: Dealer;
  #calls = new Map<number, OpenCall>();
  #lastId = 0;
  #sending: Promise<void> = Promise.resolve();
  #error: VllmportError | undefined;
  #welcomed: (error?: VllmportError) => void = () => {};

  private constructor(
    readonly endpoint: string,
    keys: ClientKeys | undefined,
  ) {
    this.#socket = new Dealer({
      reconnectInterval: -1,
      maxMessageSize: MAX_FRAME,
      receiveHighWaterMark: 0, // streams are bounded by credit
      linger: 200,
      ipv6: true,
      ...keys,
    });
  }

  /**
   * Connect and say HELLO; to a pool on TCP with the keys that it asks for.
   * Throws ConnectFailed, PermissionDenied, ProtocolError.
   */
  static async open(endpoint: string, keys: ClientKeys | undefined): Promise<Connection> {
    await probe(endpoint);
    const connection = new Connection(endpoint, keys);
    await connection.#greet();
    return connection;
  }

  get alive(): boolean {
    return this.#error === undefined;
  }

  /** Send a call; `listener` gets its events up to the last one. Returns the id of the call. */
  submit(header: CallHeader, args: unknown, timeoutMs: number | null, listener: Listener): number {
    if (this.#error !== undefined) throw this.#error;
    const id = this.#lastId + 1;
    const budget = timeoutMs === null ? null : Math.ceil(timeoutMs);
    const frames = encode("CALL", { ...header, id, remaining_ms: budget }, args);
    decode(frames); // what a supervisor would refuse does not leave
    this.#lastId = id;
    const timer = budget === null ? undefined : setTimeout(() => this.#expire(id), budget + GRACE_MS);
    this.#calls.set(id, { listener, timer });
    this.#send(frames);
    return id;
  }

  /** Give a call up and forget it: nothing of it comes any more. */
  abandon(id: number): void {
    if (this.#forget(id) !== undefined) this.#send(encode("CANCEL", { id }));
  }

  /** Let a stream send more items. */
  credit(id: number, room: number): void {
    if (this.#calls.has(id)) this.#send(encode("CREDIT", { id, room }));
  }

  /** Leave; open calls fail with PoolClosed. */
  async close(): Promise<void> {
    if (this.#error !== undefined) return;
    this.#send(encode("BYE", { reason: "closed" }));
    await this.#sending;
    this.#end(new PoolClosed("this client was closed"));
  }

  async #greet(): Promise<void> {
    const welcomed = new Promise<void>((resolve, reject) => {
      this.#welcomed = (error) => (error === undefined ? resolve() : reject(error));
    });
    void this.#watch();
    this.#socket.connect(this.endpoint);
    void this.#read();
    this.#send(encode("HELLO", { versions: [PROTOCOL_VERSION], product: PRODUCT, pid: process.pid, name: "node" }));
    const silence = setTimeout(() => {
      this.#end(new ConnectFailed(`nobody answered at ${this.endpoint}`, { details: { endpoint: this.endpoint } }));
    }, GREETING_MS);
    try {
      await welcomed;
    } finally {
      clearTimeout(silence);
    }
  }

  /** Send in order; the socket takes one message at a time. */
  #send(frames: Uint8Array[]): void {
    this.#sending = this.#sending
      .then(() => (this.#error === undefined ? this.#socket.send(frames as Buffer[]) : undefined))
      .catch((error: unknown) => this.#end(new PoolLost(`cannot send: ${String(error)}`)));
  }

  async #read(): Promise<void> {
    try {
      for await (const frames of this.#socket) this.#handle(decode(frames));
    } catch (error) {
      this.#end(error instanceof VllmportError ? error : new PoolLost(String(error)));
    }
  }

  async #watch(): Promise<void> {
    for await (const event of this.#socket.events) {
      if (ENDINGS.has(event.type)) {
        setTimeout(() => this.#end(this.#loss()), LAST_WORDS_MS);
      } else if (event.type === "end") {
        return;
      }
    }
  }

  /** Why the connection ended: it was lost, or refused before anything was said on it. */
  #loss(): VllmportError {
    const parts = { details: { endpoint: this.endpoint } };
    if (this.epoch !== "") return new PoolLost("the supervisor is gone", parts);
    if (addressOf(this.endpoint) === undefined) {
      return new ConnectFailed(`${this.endpoint} ended the connection before it began`, parts);
    }
    const words =
      `${this.endpoint} refused the connection: the pool does not know this key, or serverKey is not its public key`;
    return new PermissionDenied(words, { phase: "connect", ...parts });
  }

  #handle(message: Message): void {
    const { kind, fields, payload, buffers } = message;
    switch (kind) {
      case "WELCOME":
        this.epoch = fields["epoch"] as string;
        return this.#welcomed();
      case "ITEMS":
        return this.#each(message, (id, value) => this.#calls.get(id)?.listener.item?.(value));
      case "END":
        return this.#each(message, (id, value) => this.#forget(id)?.listener.done(value));
      case "RESULT":
        return this.#forget(fields["id"] as number)?.listener.done(unpack(payload, buffers));
      case "ERROR":
        if (fields["id"] === 0) throw errorOf(message);
        return this.#forget(fields["id"] as number)?.listener.failed(errorOf(message));
      case "BYE":
        throw new PoolLost(`the supervisor left: ${fields["reason"]}`);
      case "PONG":
        return;
      default:
        throw new ProtocolError(`a supervisor sends no ${kind}`);
    }
  }

  #each(message: Message, take: (id: number, value: unknown) => void): void {
    const entries = message.fields["entries"] as Entry[];
    const values = unpack(message.payload, message.buffers);
    if (!Array.isArray(values) || values.length !== entries.length) {
      throw new ProtocolError(`${message.kind} has one value for each entry`);
    }
    entries.forEach(([id], index) => take(id, values[index]));
  }

  #expire(id: number): void {
    const late = this.#forget(id);
    const words = "the deadline passed and the pool said nothing";
    late?.listener.failed(new DeadlineExceeded(words, { phase: "connection" }));
  }

  #forget(id: number): OpenCall | undefined {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    clearTimeout(call?.timer);
    return call;
  }

  /** Fail every open call, once. */
  #end(error: VllmportError): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#welcomed(error);
    for (const id of [...this.#calls.keys()]) this.#forget(id)?.listener.failed(error);
    this.#socket.close();
  }
}

/** Say at once, with the reason, if nobody can be behind an endpoint. */
function probe(endpoint: string): Promise<void> {
  const where = addressOf(endpoint) ?? { path: endpoint.replace(/^ipc:\/\//, "") };
  return new Promise((resolve, reject) => {
    const socket = connectSocket(where, () => {
      socket.destroy();
      resolve();
    });
    socket.setTimeout(PROBE_MS, () => socket.destroy(new Error("nobody answers in time")));
    socket.once("error", (error: NodeJS.ErrnoException) => {
      const words =
        `no pool at ${endpoint} (${error.code ?? error.message}); start one with \`vllmport serve\`, ` +
        "or name another with VLLMPORT_ENDPOINT";
      reject(new ConnectFailed(words, { details: { endpoint } }));
    });
  });
}
