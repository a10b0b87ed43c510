// The conformance vectors, replayed.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ERRORS } from "../src/errors.js";
import { type Entry, KINDS, type Message, decode, decodeHeader, encode, errorOf } from "../src/messages.js";
import { Complex, Duration, FrozenSet, IsoTime, NdArray, Ref, Tuple, pack, unpack } from "../src/values.js";
import { PRODUCT } from "../src/version.js";

type Tagged = [string, ...unknown[]];
interface Vector {
  name: string;
  value: Tagged;
  payload: string & Tagged;
  buffers?: string[];
  kind: string;
  fields: Record<string, unknown>;
  frames: string[];
  header: string;
  code: string;
  class: string;
  retryable: boolean;
  from: string;
  messages: Vector[];
  calls: { id: number; items: Tagged[]; result?: Tagged; error?: string }[];
}

function vectors(file: string, group: string): Vector[] {
  const url = new URL(`../../../../bridge/vectors/${file}.json`, import.meta.url);
  return JSON.parse(readFileSync(url, "utf8"))[group];
}

const bytes = (hex: string) => new Uint8Array(Buffer.from(hex, "hex"));
const real = (hex: string) => Buffer.from(hex, "hex").readDoubleBE();
const isClientsOwn = (vector: Vector) => vector.kind in KINDS;

const MEANINGS: Record<string, (...parts: any[]) => unknown> = {
  nil: () => null,
  bool: (value) => value,
  int: (digits) => (Number.isSafeInteger(Number(digits)) ? Number(digits) : BigInt(digits)),
  float: real,
  text: (value) => value,
  binary: bytes,
  symbol: (name) => Symbol.for(name),
  array: (items: Tagged[]) => items.map(valueOf),
  tuple: (items: Tagged[]) => Tuple.from(items.map(valueOf)),
  set: (items: Tagged[]) => new Set(items.map(valueOf)),
  frozenset: (items: Tagged[]) => new FrozenSet(items.map(valueOf)),
  map: (pairs: [Tagged, Tagged][]) => Object.fromEntries(pairs.map(([key, item]) => [keyOf(key), valueOf(item)])),
  datetime: (text) => new IsoTime("datetime", text),
  date: (text) => new IsoTime("date", text),
  time: (text) => new IsoTime("time", text),
  timedelta: (parts: [number, number, number]) => new Duration(...parts),
  complex: ([one, two]) => new Complex(real(one), real(two)),
  ref: ([session, worker, number, type]) => new Ref(session, worker, Number(number), type),
  ndarray: (dtype, shape, data) => new NdArray(dtype, shape, bytes(data)),
};

function valueOf([type, ...parts]: Tagged): unknown {
  return MEANINGS[type]!(...parts);
}

/** Keys of objects are text. */
function keyOf(key: Tagged): string {
  return key[0] === "tuple" ? `(${(valueOf(key) as unknown[]).join(", ")})` : String(valueOf(key));
}

// The language has one kind of number and text alone for keys, and sends 64 bits as BIGINT.
const OTHER_BYTES = new Set([
  "largest i64",
  "largest u64",
  "smallest i64",
  "whole float",
  "map with whole numbers as keys",
  "map with a tuple as key",
]);

// The library reads these without a word.
const UNNOTICED = new Set(["text that is no UTF-8", "a float for a number"]);
const isNoticed = (vector: Vector) => !UNNOTICED.has(vector.name);

for (const vector of vectors("values", "same")) {
  test(`value: ${vector.name}`, () => {
    const value = valueOf(vector.value);
    assert.deepEqual(unpack(bytes(vector.payload), vector.buffers?.map(bytes)), value);
    if (Object.is(value, -0)) return; // is written as 0
    const packed = pack(value);
    assert.deepEqual(unpack(packed.payload, packed.buffers), value);
    if (OTHER_BYTES.has(vector.name)) return;
    assert.equal(Buffer.from(packed.payload).toString("hex"), vector.payload);
    assert.deepEqual(packed.buffers, (vector.buffers ?? []).map(bytes));
  });
}

for (const vector of vectors("values", "read")) {
  test(`another form of a value: ${vector.name}`, () => {
    assert.deepEqual(unpack(bytes(vector.payload)), valueOf(vector.value));
  });
}

for (const vector of vectors("values", "refused").filter(isNoticed)) {
  test(`no value: ${vector.name}`, () => {
    assert.throws(() => unpack(bytes(vector.payload)), { code: "protocol_error" });
  });
}

for (const vector of vectors("messages", "same").filter(isClientsOwn)) {
  test(`message: ${vector.name}`, () => {
    const frames = vector.frames.map(bytes);
    const message = decode(frames);
    assert.equal(message.kind, vector.kind);
    assert.deepEqual(message.fields, plain(vector.fields, message));
    const value = valueOf(vector.payload);
    assert.deepEqual(unpack(message.payload, message.buffers), value);
    if (vector.name === "largest numbers") return; // no id or room is that large
    assert.deepEqual(encode(vector.kind, vector.fields, value).map((frame) => Buffer.from(frame).toString("hex")), vector.frames);
  });
}

/** JSON has lost digits of the largest numbers; they are compared as they were read. */
function plain(fields: Record<string, unknown>, message: Message): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => {
      const read = message.fields[name];
      return [name, typeof read === "bigint" && Number(read) === value ? read : value];
    }),
  );
}

for (const vector of vectors("messages", "read")) {
  test(`another form of a header: ${vector.name}`, () => {
    assert.deepEqual(decodeHeader(bytes(vector.header)), { kind: vector.kind, fields: vector.fields });
  });
}

for (const vector of vectors("messages", "refused").filter(isNoticed)) {
  test(`no header: ${vector.name}`, () => {
    assert.throws(() => decodeHeader(bytes(vector.header)), { code: "protocol_error" });
  });
}

test("every code has its class", () => {
  for (const { code, class: name, retryable } of vectors("errors", "codes")) {
    const error = new (ERRORS.get(code)!)("", retryable ? { retryable } : {});
    assert.deepEqual([error.code, error.name, error.retryable], [code, name, retryable]);
  }
});

for (const vector of vectors("errors", "messages")) {
  test(`error: ${vector.code}`, () => {
    const error = errorOf(decode(vector.frames.map(bytes)));
    assert.equal(error.constructor === ERRORS.get(vector.code), ERRORS.has(vector.code));
    const { message, retryable, phase, worker, attempt } = vector.fields;
    assert.deepEqual(
      [error.code, error.message, error.retryable, error.phase, error.worker, error.attempt],
      [vector.code, message, retryable, phase, worker, attempt],
    );
    assert.deepEqual(error.details, valueOf(vector.payload));
  });
}

for (const vector of vectors("sequences", "sequences")) {
  test(`conversation: ${vector.name}`, () => {
    const ended = play(vector.messages);
    for (const call of vector.calls) {
      const own = ended.get(call.id)!;
      assert.equal(own.error, call.error);
      if (call.result) assert.deepEqual(own.result, valueOf(call.result));
      if (own.items) assert.deepEqual(own.items, call.items.map(valueOf));
    }
    assert.equal(ended.size, vector.calls.length);
  });
}

interface Played {
  items: unknown[] | undefined;
  result?: unknown;
  error?: string;
}

/** Take a conversation as the rules of the protocol tell a client to. */
function play(messages: Vector[]): Map<number, Played> {
  const calls = new Map<number, Played>();
  const end = (id: number, how: Partial<Played>) => {
    const call = calls.get(id);
    if (call && !("result" in call) && !("error" in call)) Object.assign(call, how);
  };
  for (const said of messages) {
    const message = decode(said.frames.map(bytes));
    const id = message.fields["id"] as number;
    const value = unpack(message.payload, message.buffers);
    const entries = (message.fields["entries"] ?? []) as Entry[];
    if (message.kind === "CALL") calls.set(id, { items: [] });
    if (message.kind === "CANCEL") calls.get(id)!.items = undefined;
    if (message.kind === "RESULT") end(id, { result: value });
    if (message.kind === "ERROR") end(id, { error: message.fields["code"] as string });
    if (message.kind === "BYE") calls.forEach((_, open) => end(open, { error: "pool_lost" }));
    entries.forEach(([own], index) => {
      const part = (value as unknown[])[index];
      if (message.kind === "END") end(own, { result: part });
      else calls.get(own)?.items?.push(part);
    });
  }
  return calls;
}

test("the version is that of the package", () => {
  const url = new URL("../../package.json", import.meta.url);
  assert.equal(JSON.parse(readFileSync(url, "utf8")).version, PRODUCT);
});
