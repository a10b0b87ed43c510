// The messages of the protocol and their frames: a header, a payload, buffers.

import { ProtocolError, VllmportError, errorFromCode } from "./errors.js";
import { pack, packHeader, unpack, unpackHeader } from "./values.js";

export const MAX_HEADER = 262_144;
export const MAX_FRAME = 67_108_864;
const MAX_BUFFERS = 64;
const MAX_NAME = 1024;
const MAX_TEXT = 32_768;
const MAX_TIMEOUT_MS = 2_000_000_000;

type FieldType = "int" | "call id" | "window" | "budget" | "bool" | "name" | "text" | "ints" | "pairs";
type Field = readonly [name: string, type: FieldType, fallback?: unknown];

interface Kind {
  code: number;
  fields: readonly Field[];
}

/** Kind → its code and its fields, in their order; what has no default is required. */
export const KINDS: Readonly<Record<string, Kind>> = {
  HELLO: {
    code: 1,
    fields: [["versions", "ints"], ["product", "name"], ["pid", "int", 0], ["name", "name", ""]],
  },
  WELCOME: {
    code: 2,
    fields: [["version", "int"], ["product", "name"], ["epoch", "name"], ["pid", "int"]],
  },
  CALL: {
    code: 10,
    fields: [
      ["id", "call id"],
      ["model", "name"],
      ["verb", "name"],
      ["remaining_ms", "budget"],
      ["window", "window", 0],
      ["priority", "int", 0],
      ["request_id", "name", ""],
      ["client", "int", 0],
      ["attempt", "int", 0],
      ["retry", "name", ""],
      ["session", "name", ""],
      ["affinity", "name", ""],
      ["ttl_ms", "window", 0],
    ],
  },
  CANCEL: { code: 11, fields: [["id", "int"], ["client", "int", 0]] },
  CREDIT: { code: 12, fields: [["id", "int"], ["room", "int"], ["client", "int", 0]] },
  RESULT: {
    code: 13,
    fields: [["id", "int"], ["client", "int", 0], ["worker", "name", ""], ["attempt", "int", 0]],
  },
  ITEMS: { code: 14, fields: [["entries", "pairs"], ["client", "int", 0]] },
  END: { code: 15, fields: [["entries", "pairs"], ["client", "int", 0], ["worker", "name", ""]] },
  ERROR: {
    code: 16,
    fields: [
      ["id", "int"],
      ["code", "name"],
      ["message", "text"],
      ["retryable", "bool", false],
      ["phase", "name", ""],
      ["worker", "name", ""],
      ["attempt", "int", 0],
      ["client", "int", 0],
    ],
  },
  PING: { code: 20, fields: [["token", "int"]] },
  PONG: { code: 21, fields: [["token", "int"]] },
  BYE: { code: 22, fields: [["reason", "name", ""]] },
};

const NAMES = new Map(Object.entries(KINDS).map(([name, kind]) => [kind.code, name]));

/** A decoded message; its payload is still bytes. */
export interface Message {
  kind: string;
  fields: Record<string, unknown>;
  payload: Uint8Array;
  buffers: Uint8Array[];
}

/** An entry of ITEMS or END: a call id and a number. */
export type Entry = readonly [id: number, number: number];

/** Turn a message into its frames. Throws InvalidRequest if the value cannot travel. */
export function encode(kind: string, fields: Record<string, unknown>, value: unknown = null): Uint8Array[] {
  const known = schema(kind);
  const header = packHeader([known.code, ...known.fields.map(([name, , fallback]) => fields[name] ?? fallback ?? null)]);
  const { payload, buffers } = pack(value);
  return [header, payload, ...buffers];
}

/** Turn frames into a message. Throws ProtocolError. */
export function decode(frames: readonly Uint8Array[]): Message {
  const [header, payload, ...buffers] = frames;
  if (header === undefined || payload === undefined || buffers.length > MAX_BUFFERS) {
    throw new ProtocolError(`a message has 2 to ${2 + MAX_BUFFERS} frames, got ${frames.length}`);
  }
  return { ...decodeHeader(header), payload, buffers };
}

/** Read a header: its kind and its fields, with defaults filled in. Throws ProtocolError. */
export function decodeHeader(frame: Uint8Array): { kind: string; fields: Record<string, unknown> } {
  if (frame.length > MAX_HEADER) throw new ProtocolError(`header of ${frame.length} bytes`);
  const header = unpackHeader(frame);
  const kind = Array.isArray(header) ? NAMES.get(header[0] as number) : undefined;
  if (!Array.isArray(header) || kind === undefined) throw new ProtocolError("unknown kind of message");
  const fields: Record<string, unknown> = {};
  schema(kind).fields.forEach(([name, type, fallback], index) => {
    const value = index + 1 < header.length ? (header[index + 1] as unknown) : fallback;
    if (!CHECKS[type](value)) throw new ProtocolError(`${kind}.${name} cannot be ${String(value)}`);
    fields[name] = value;
  });
  return { kind, fields };
}

/** Rebuild the error that an ERROR message describes. */
export function errorOf(message: Message): VllmportError {
  const { code, message: words, retryable, phase, worker, attempt } = message.fields;
  return errorFromCode(code as string, words as string, {
    retryable: retryable as boolean,
    phase: phase as string,
    worker: worker as string,
    attempt: attempt as number,
    details: unpack(message.payload, message.buffers) as Record<string, unknown>,
  });
}

function schema(kind: string): Kind {
  const known = KINDS[kind];
  if (known === undefined) throw new TypeError(`no kind ${kind}`);
  return known;
}

function isInt(value: unknown): value is number | bigint {
  if (typeof value === "bigint") return BigInt.asIntN(64, value) === value;
  return typeof value === "number" && Number.isSafeInteger(value);
}

function isText(value: unknown, characters: number): boolean {
  return typeof value === "string" && (value.length <= characters || [...value].length <= characters);
}

const isInts = (value: unknown): value is unknown[] => Array.isArray(value) && value.every(isInt);

const CHECKS: Readonly<Record<FieldType, (value: unknown) => boolean>> = {
  int: isInt,
  "call id": (value) => isInt(value) && value >= 1,
  window: (value) => isInt(value) && value >= 0,
  budget: (value) => value === null || (isInt(value) && value >= 0 && value <= MAX_TIMEOUT_MS),
  bool: (value) => typeof value === "boolean",
  name: (value) => isText(value, MAX_NAME),
  text: (value) => isText(value, MAX_TEXT),
  ints: isInts,
  pairs: (value) => Array.isArray(value) && value.every((pair) => isInts(pair) && pair.length === 2),
};
