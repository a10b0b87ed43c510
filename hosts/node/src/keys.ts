// What a client of a pool that listens on TCP comes with: its own key pair, and the pool's key.

import { readFileSync, statSync } from "node:fs";
import { refusal } from "./calls.js";
import { InvalidRequest } from "./errors.js";

/** Where the keys are, if not where VLLMPORT_SERVER_KEY and VLLMPORT_KEY say. */
export interface KeyOptions {
  /** The pool's public key: what `vllmport keygen` printed for it. */
  serverKey?: string;
  /** Path of the client's own pair, as `vllmport keygen` writes it. */
  key?: string;
}

/** As the options of a socket. */
export interface ClientKeys {
  curveServerKey: string;
  curvePublicKey: string;
  curveSecretKey: string;
}

const Z85 = /^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$#]{40}$/;
const HERE = /^ipc:\/\/\/./;
const THERE = /^tcp:\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d+)$/;

/** Host and port of a tcp endpoint; undefined for a local one. Throws InvalidRequest. */
export function addressOf(endpoint: string): { host: string; port: number } | undefined {
  if (HERE.test(endpoint)) return undefined;
  const found = THERE.exec(endpoint);
  if (found === null || Number(found[3]) > 65535) {
    const words = "an endpoint looks like ipc:///run/user/1000/vllmport/pool.sock or tcp://10.0.0.7:5555";
    throw refusal("endpoint", endpoint, words);
  }
  return { host: (found[1] ?? found[2]) as string, port: Number(found[3]) };
}

/** The keys for an endpoint, undefined for a local one. Throws InvalidRequest. */
export function keysFor(endpoint: string, options: KeyOptions): ClientKeys | undefined {
  if (addressOf(endpoint) === undefined) return undefined;
  const server = options.serverKey ?? process.env["VLLMPORT_SERVER_KEY"];
  const path = options.key ?? process.env["VLLMPORT_KEY"];
  if (!server || !path) {
    const words =
      `${endpoint} takes keys: the pool's public key as serverKey or VLLMPORT_SERVER_KEY, and the file of ` +
      "your own pair as key or VLLMPORT_KEY; `vllmport keygen FILE` makes one";
    throw refusal(server ? "key" : "serverKey", undefined, words);
  }
  if (!Z85.test(server)) {
    throw refusal("serverKey", undefined, "serverKey is the 40 characters that `vllmport keygen` printed for the pool");
  }
  return { curveServerKey: server, ...readPair(path) };
}

/** Read a pair; no complaint quotes the file. */
function readPair(path: string): Omit<ClientKeys, "curveServerKey"> {
  let text: string;
  try {
    if ((statSync(path).mode & 0o077) !== 0) {
      throw refusal("key", path, `others may read the key ${path}; run \`chmod 600 ${path}\`, or make a new one`);
    }
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof InvalidRequest) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw refusal("key", path, `cannot read the key ${path} (${code}); \`vllmport keygen FILE\` makes one`);
  }
  const curvePublicKey = keyIn(text, "public_key");
  const curveSecretKey = keyIn(text, "secret_key");
  if (curvePublicKey === undefined || curveSecretKey === undefined) {
    throw refusal("key", path, `${path} is no key pair; \`vllmport keygen FILE\` makes one`);
  }
  return { curvePublicKey, curveSecretKey };
}

function keyIn(text: string, name: string): string | undefined {
  const found = new RegExp(`^\\s*${name}\\s*=\\s*["']([^"']*)["']`, "m").exec(text)?.[1];
  return found !== undefined && Z85.test(found) ? found : undefined;
}
