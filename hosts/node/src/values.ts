// Values ↔ bytes: msgpack, with extension types for what msgpack lacks. The only file that touches
// the msgpack library.

import { Decoder, Encoder, ExtData, ExtensionCodec } from "@msgpack/msgpack";
import { InvalidRequest, ProtocolError } from "./errors.js";

const MAX_PAYLOAD = 16_777_216;
const MAX_BUFFERS = 64;
const MAX_DEPTH = 16;
const MAX_BIGINT = 1024;
const BUFFER_THRESHOLD = 4096;

/** A Python tuple. */
export class Tuple extends Array<unknown> {}

/** A Python frozenset. */
export class FrozenSet extends Set<unknown> {}

/** A date and time, a date or a time in ISO 8601: a JavaScript Date has neither microseconds nor
 * times without a zone. */
export class IsoTime {
  constructor(
    readonly kind: "datetime" | "date" | "time",
    readonly text: string,
  ) {
    if (!ISO[kind].test(text) || (kind !== "time" && !isCalendarDay(text))) {
      throw new RangeError(`${JSON.stringify(text)} is no ${kind}`);
    }
  }
}

/** A Python timedelta. */
export class Duration {
  constructor(
    readonly days: number,
    readonly seconds: number,
    readonly microseconds: number,
  ) {}
}

/** A complex number. */
export class Complex {
  constructor(
    readonly real: number,
    readonly imaginary: number,
  ) {}
}

/** An n-dimensional array as bytes: C order, little-endian. */
export class NdArray {
  constructor(
    readonly dtype: string,
    readonly shape: readonly number[],
    readonly data: Uint8Array,
  ) {
    const size = ITEM_SIZES[dtype];
    if (size === undefined) throw new RangeError(`array type ${dtype} has no form on the wire`);
    if (shape.length > MAX_DEPTH || !shape.every((n) => Number.isSafeInteger(n) && n >= 0)) {
      throw new RangeError("bad array shape");
    }
    const expected = shape.reduce((product, n) => product * n, size);
    if (expected !== data.length) {
      throw new RangeError(`${dtype} array of [${shape}] takes ${expected} bytes, not ${data.length}`);
    }
  }
}

/** An object that stays in its worker, as it travels. */
export class Ref {
  constructor(
    readonly session: string,
    readonly worker: string,
    readonly number: number,
    readonly type: string,
  ) {}
}

const ITEM_SIZES: Readonly<Record<string, number>> = {
  bool: 1,
  int8: 1,
  uint8: 1,
  int16: 2,
  uint16: 2,
  float16: 2,
  bfloat16: 2,
  int32: 4,
  uint32: 4,
  float32: 4,
  int64: 8,
  uint64: 8,
  float64: 8,
};

const DAY = String.raw`\d{4}-\d\d-\d\d`;
const CLOCK = String.raw`([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?([+-]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?`;
const ISO = {
  datetime: new RegExp(`^${DAY}T${CLOCK}$`),
  date: new RegExp(`^${DAY}$`),
  time: new RegExp(`^${CLOCK}$`),
};

function isCalendarDay(text: string): boolean {
  const day = text.slice(0, 10);
  const date = new Date(`${day}T00:00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day);
}

/** A payload and the buffers it points into. */
export interface Packed {
  payload: Uint8Array;
  buffers: Uint8Array[];
}

interface Context {
  buffers: Uint8Array[];
  depth: number;
}

const text = new TextEncoder();
const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Turn a value into a payload frame and its buffers. Throws InvalidRequest. */
export function pack(value: unknown): Packed {
  const context: Context = { buffers: [], depth: 0 };
  let payload: Uint8Array;
  try {
    payload = packWith(value, context);
  } catch (error) {
    throw new InvalidRequest(`this value cannot travel: ${(error as Error).message}`, { cause: error });
  }
  if (payload.length > MAX_PAYLOAD) {
    throw new InvalidRequest(`the arguments take ${payload.length} bytes, the limit is ${MAX_PAYLOAD}`);
  }
  return { payload, buffers: context.buffers };
}

/** Turn a payload frame and its buffers back into the value. Throws ProtocolError. */
export function unpack(payload: Uint8Array, buffers: Uint8Array[] = []): unknown {
  if (payload.length > MAX_PAYLOAD) throw new ProtocolError(`payload of ${payload.length} bytes`);
  try {
    return unpackWith(payload, { buffers, depth: 0 });
  } catch (error) {
    if (error instanceof ProtocolError) throw error;
    throw new ProtocolError(`payload is not a value: ${(error as Error).message}`, { cause: error });
  }
}

function packWith(value: unknown, context: Context): Uint8Array {
  return new Encoder({ extensionCodec: CODEC, context, ignoreUndefined: true, maxDepth: 512 }).encode(
    value,
  );
}

function unpackWith(data: Uint8Array, context: Context): unknown {
  const decoder = new Decoder({
    extensionCodec: CODEC,
    context,
    useBigInt64: true,
    // Objects have text for keys, and so have maps here: 7 and "7" are the same.
    mapKeyConverter: (key) => (key instanceof Tuple ? `(${key.join(", ")})` : String(key)),
  });
  return smallIntegers(decoder.decode(data));
}

/** Turn each bigint that a number can hold into one. */
function smallIntegers(value: unknown): unknown {
  if (typeof value === "bigint") {
    return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  }
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) value[index] = smallIntegers(value[index]);
  } else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    const map = value as Record<string, unknown>;
    for (const key in map) map[key] = smallIntegers(map[key]);
  }
  return value;
}

// Extension types.

const CODEC = new ExtensionCodec<Context>();

function inside<T>(context: Context, work: () => T): T {
  context.depth += 1;
  try {
    if (context.depth > MAX_DEPTH) throw new RangeError(`nested more than ${MAX_DEPTH} levels deep`);
    return work();
  } finally {
    context.depth -= 1;
  }
}

function register(
  type: number,
  encode: (value: object | bigint | symbol, context: Context) => Uint8Array | null,
  decode: (body: Uint8Array, context: Context) => unknown,
): void {
  // The library asks for every object it knows no form of, and types the parameter as unknown.
  CODEC.register({
    type,
    encode: (value, context) => encode(value as object, context),
    decode: (body, _type, context) => decode(body, context),
  });
}

function elements(body: Uint8Array, context: Context): unknown[] {
  const value = inside(context, () => unpackWith(body, context));
  if (!Array.isArray(value)) throw new ProtocolError("the body of a tuple or set is an array");
  return value;
}

function packed(value: Iterable<unknown>, context: Context): Uint8Array {
  return inside(context, () => packWith(Array.from(value), context));
}

register(
  1,
  (value, context) => (value instanceof Tuple ? packed(value, context) : null),
  (body, context) => Tuple.from(elements(body, context)),
);
register(
  2,
  (value, context) =>
    value instanceof Set && !(value instanceof FrozenSet) ? packed(value, context) : null,
  (body, context) => new Set(elements(body, context)),
);
register(
  3,
  (value, context) => (value instanceof FrozenSet ? packed(value, context) : null),
  (body, context) => new FrozenSet(elements(body, context)),
);
register(
  4,
  (value) => {
    if (typeof value !== "symbol") return null;
    const name = Symbol.keyFor(value);
    if (name === undefined) throw new TypeError("only symbols of Symbol.for have a name to travel by");
    return text.encode(name);
  },
  (body) => Symbol.for(utf8.decode(body)),
);
(["datetime", "date", "time"] as const).forEach((kind, index) => {
  register(
    5 + index,
    (value) => {
      if (kind === "datetime" && value instanceof Date) {
        return text.encode(value.toISOString().replace("Z", "+00:00"));
      }
      return value instanceof IsoTime && value.kind === kind ? text.encode(value.text) : null;
    },
    (body) => new IsoTime(kind, utf8.decode(body)),
  );
});
register(
  8,
  (value) => {
    if (!(value instanceof Duration)) return null;
    const view = new DataView(new ArrayBuffer(16));
    view.setBigInt64(0, BigInt(value.days), true);
    view.setInt32(8, value.seconds, true);
    view.setInt32(12, value.microseconds, true);
    return new Uint8Array(view.buffer);
  },
  (body) => {
    const view = exactly(body, 16);
    return new Duration(
      Number(view.getBigInt64(0, true)),
      view.getInt32(8, true),
      view.getInt32(12, true),
    );
  },
);
register(
  9,
  (value) => {
    if (!(value instanceof Complex)) return null;
    const view = new DataView(new ArrayBuffer(16));
    view.setFloat64(0, value.real, true);
    view.setFloat64(8, value.imaginary, true);
    return new Uint8Array(view.buffer);
  },
  (body) => {
    const view = exactly(body, 16);
    return new Complex(view.getFloat64(0, true), view.getFloat64(8, true));
  },
);
register(
  10,
  (value) => (typeof value === "bigint" ? bigintBytes(value) : null),
  (body) => {
    if (body.length === 0 || body.length > MAX_BIGINT) {
      throw new ProtocolError(`integer of ${body.length} bytes`);
    }
    return BigInt.asIntN(8 * body.length, BigInt(`0x${Buffer.from(body).toString("hex")}`));
  },
);
register(
  11,
  (value, context) => {
    if (!(value instanceof NdArray) || becomesBuffer(value, context)) return null;
    return packWith([value.dtype, value.shape, value.data], context);
  },
  (body) => {
    const [dtype, shape, data] = arrayBody(body);
    if (!(data instanceof Uint8Array)) throw new ProtocolError("the data of an array is binary");
    return new NdArray(dtype, shape, data);
  },
);
register(
  12,
  (value, context) => {
    if (!(value instanceof NdArray)) return null;
    context.buffers.push(value.data);
    return packWith([value.dtype, value.shape, context.buffers.length - 1], context);
  },
  (body, context) => {
    const [dtype, shape, position] = arrayBody(body);
    const data = typeof position === "number" ? context.buffers[position] : undefined;
    if (data === undefined) throw new ProtocolError(`there is no buffer ${String(position)}`);
    return new NdArray(dtype, shape, data);
  },
);
register(
  13,
  (value, context) => {
    if (!(value instanceof Ref)) return null;
    return packWith([value.session, value.worker, value.number, value.type], context);
  },
  (body) => {
    const fields = unpackHeader(body);
    if (!Array.isArray(fields) || fields.length !== 4) throw new ProtocolError("a ref has four parts");
    const [session, worker, number, type] = fields as unknown[];
    const named = [session, worker, type].every((name) => typeof name === "string");
    if (!named || !Number.isSafeInteger(number) || (number as number) < 1) {
      throw new ProtocolError("a ref is [session, worker, number, type]");
    }
    return new Ref(session as string, worker as string, number as number, type as string);
  },
);
register(
  -1,
  () => null,
  (body) => {
    const view = new DataView(body.buffer, body.byteOffset, body.length);
    if (body.length === 4) return moment(view.getUint32(0), 0);
    if (body.length === 8) {
      const both = view.getBigUint64(0);
      return moment(Number(both & 0x3_ffff_ffffn), Number(both >> 34n));
    }
    if (body.length === 12) return moment(Number(view.getBigInt64(4)), view.getUint32(0));
    throw new ProtocolError(`timestamp of ${body.length} bytes`);
  },
);

function becomesBuffer(value: NdArray, context: Context): boolean {
  return value.data.length >= BUFFER_THRESHOLD && context.buffers.length < MAX_BUFFERS;
}

function exactly(body: Uint8Array, size: number): DataView {
  if (body.length !== size) throw new ProtocolError(`${size} bytes expected, not ${body.length}`);
  return new DataView(body.buffer, body.byteOffset, body.length);
}

function arrayBody(body: Uint8Array): [string, number[], unknown] {
  const fields = new Decoder({ extensionCodec: NO_EXTENSIONS }).decode(body);
  if (!Array.isArray(fields) || fields.length !== 3 || !Array.isArray(fields[1])) {
    throw new ProtocolError("an array is [type, shape, data]");
  }
  return fields as [string, number[], unknown];
}

function moment(seconds: number, nanoseconds: number): IsoTime {
  const whole = new Date(seconds * 1000).toISOString().slice(0, 19);
  const fraction = String(Math.floor(nanoseconds / 1000)).padStart(6, "0");
  return new IsoTime("datetime", `${whole}${nanoseconds ? `.${fraction}` : ""}+00:00`);
}

function bigintBytes(value: bigint): Uint8Array {
  let size = 1;
  while (BigInt.asIntN(8 * size, value) !== value) size += 1;
  if (size > MAX_BIGINT) throw new RangeError(`integer of ${size} bytes`);
  const hex = BigInt.asUintN(8 * size, value).toString(16).padStart(2 * size, "0");
  return Buffer.from(hex, "hex");
}

class RefusingCodec extends ExtensionCodec<undefined> {
  override decode(_body: Uint8Array, type: number): never {
    throw new ProtocolError(`unknown extension type ${type}`);
  }
}

const NO_EXTENSIONS = new RefusingCodec();
const knownDecode = CODEC.decode.bind(CODEC);
CODEC.decode = (body, type, context) => {
  const value = knownDecode(body, type, context);
  if (value instanceof ExtData) throw new ProtocolError(`unknown extension type ${type}`);
  return value;
};

/** Turn the fields of a header into its frame. */
export function packHeader(fields: unknown[]): Uint8Array {
  return new Encoder({ extensionCodec: NO_EXTENSIONS }).encode(fields);
}

/** Turn a header frame into its fields. Throws ProtocolError. */
export function unpackHeader(frame: Uint8Array): unknown {
  try {
    return smallIntegers(
      new Decoder({ extensionCodec: NO_EXTENSIONS, useBigInt64: true }).decode(frame),
    );
  } catch (error) {
    throw new ProtocolError(`header is not msgpack: ${(error as Error).message}`, { cause: error });
  }
}
