// A pool that runs already, and the handles of its models.

import { userInfo } from "node:os";
import { type CallOptions, PROFILES, headerOf, resultOf, timeoutOf, untilAborted } from "./calls.js";
import type { Connection } from "./connection.js";
import { type KeyOptions, keysFor } from "./keys.js";
import { Link } from "./link.js";
import type { EngineArgs, LoRARequest, SamplingParams } from "./params.js";
import type { PoolStatus, Progress, RequestOutput } from "./results.js";
import { type Ready, Stream } from "./stream.js";
import { Session, type SessionOptions } from "./universal.js";

const WINDOW = 256; // items of a stream that may be on their way before more are granted
const CONTROL_MS = 60_000;
const AT_ONCE = 1024; // prompts of one list that are open at one time

/** Text, token ids, or a map with `prompt` or `prompt_token_ids`. */
export type Prompt = string | number[] | { prompt?: string; prompt_token_ids?: number[]; cache_salt?: string };
export type ChatMessage = { role: string; content: unknown } & Record<string, unknown>;

/** The keys are for pools that listen on TCP. */
export interface ConnectOptions extends KeyOptions {
  /** Milliseconds to try again where nobody answers, 10 s if not given. */
  patience?: number;
}

export interface LoadOptions extends EngineArgs {
  /** What to call the model; the model as written if not given. Alone, joins what runs under it. */
  name?: string;
  v1_multiprocessing?: "auto" | "on" | "off";
  env?: Record<string, string>;
  replicas?: number;
}

export interface GenerateOptions extends CallOptions {
  lora_request?: LoRARequest;
}

export interface ChatOptions extends GenerateOptions {
  chat_template?: string;
  chat_template_kwargs?: Record<string, unknown>;
  tools?: Record<string, unknown>[];
  add_generation_prompt?: boolean;
  continue_final_message?: boolean;
}

/** The endpoint of VLLMPORT_ENDPOINT, else the one in the user's runtime folder. */
export function defaultEndpoint(): string {
  const runtime = process.env["XDG_RUNTIME_DIR"];
  const folder = runtime ? `${runtime}/vllmport` : `/tmp/vllmport-${userInfo().uid}`;
  return process.env["VLLMPORT_ENDPOINT"] || `ipc://${folder}/pool.sock`;
}

export class Pool {
  /** @internal */
  readonly link: Link;

  private constructor(link: Link) {
    this.link = link;
  }

  /**
   * Join a pool at ipc://PATH or tcp://HOST:PORT. When its supervisor is lost, open calls fail
   * with PoolLost and the next call connects again. Throws ConnectFailed, InvalidRequest, and
   * PermissionDenied where the pool does not know the key.
   */
  static async connect(endpoint = defaultEndpoint(), options: ConnectOptions = {}): Promise<Pool> {
    const keys = keysFor(endpoint, options);
    const pool = new Pool(new Link(endpoint, options.patience ?? 10_000, keys));
    await pool.link.connection(0);
    return pool;
  }

  get endpoint(): string {
    return this.link.endpoint;
  }

  /** The run of the supervisor that is reached now; another one after it was restarted. */
  async epoch(): Promise<string> {
    return (await this.link.connection(null)).epoch;
  }

  /**
   * Load a model, or join an equal one, and hold it until the handle is closed.
   * Throws InvalidRequest, StartupFailed.
   */
  async llm(
    model: string | undefined,
    options: LoadOptions = {},
    call: CallOptions & { onProgress?: (progress: Progress) => void } = {},
  ): Promise<LLM> {
    const { name, v1_multiprocessing, env, replicas, ...engine_args } = options;
    const specification = {
      model,
      name: name ?? model ?? "tiny",
      v1_multiprocessing: v1_multiprocessing ?? "auto",
      env: env ?? {},
      replicas: replicas ?? 1,
      engine_args,
    };
    const llm = new LLM(this, specification);
    await llm.attach(call);
    return llm;
  }

  /** What runs: supervisor, spawner, models, workers, counters. */
  async status(options: CallOptions = {}): Promise<PoolStatus> {
    return (await this.call("status", {}, options)) as PoolStatus;
  }

  /** Stop a model whoever holds it, and wait until it is gone. */
  async unload(name: string, options: CallOptions = {}): Promise<void> {
    await this.call("unload", { name }, options);
  }

  /** Stop the pool; without `drain` open calls are not waited for. */
  async shutdown({ drain = true } = {}): Promise<void> {
    await this.call("shutdown", { drain });
  }

  /** Call a verb of the pool itself. */
  async call(verb: string, args: Record<string, unknown>, options: CallOptions = {}): Promise<unknown> {
    const timeout = timeoutOf({ timeout: CONTROL_MS, ...options });
    const connection = await this.link.connection(timeout);
    return resultOf(connection, headerOf("", verb, options), args, timeout, options.signal);
  }

  /** Leave: open calls fail with PoolClosed, what runs goes on. */
  async close(): Promise<void> {
    await this.link.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** A model of a pool. */
export class LLM {
  #pool: Pool;
  #specification: Record<string, unknown>;
  #held: Connection | undefined;
  #attaching: Promise<Connection> | undefined;

  /** @internal */
  constructor(pool: Pool, specification: Record<string, unknown> & { name: string }) {
    this.#pool = pool;
    this.#specification = specification;
    this.name = specification.name;
  }

  readonly name: string;
  /** What was translated of old names in its arguments, for people. */
  notes: readonly string[] = [];

  /** Complete one prompt, or each of a list of them in the order given. */
  generate(prompt: Prompt, params?: SamplingParams, options?: GenerateOptions): Promise<RequestOutput>;
  generate(prompts: Exclude<Prompt, number[]>[], params?: SamplingParams, options?: GenerateOptions): Promise<RequestOutput[]>;
  generate(
    prompts: Prompt | Exclude<Prompt, number[]>[],
    params?: SamplingParams,
    options: GenerateOptions = {},
  ): Promise<RequestOutput | RequestOutput[]> {
    if (!isList(prompts)) return this.#result("generate", generation(prompts, params, options), options);
    return this.#all(prompts, options, (prompt) => generation(prompt, params, options), "generate");
  }

  /** Answer one conversation, or each of a list of them. */
  chat(messages: ChatMessage[], params?: SamplingParams, options?: ChatOptions): Promise<RequestOutput>;
  chat(conversations: ChatMessage[][], params?: SamplingParams, options?: ChatOptions): Promise<RequestOutput[]>;
  chat(
    messages: ChatMessage[] | ChatMessage[][],
    params?: SamplingParams,
    options: ChatOptions = {},
  ): Promise<RequestOutput | RequestOutput[]> {
    if (!Array.isArray(messages[0])) return this.#result("chat", conversation(messages, params, options), options);
    return this.#all(messages as ChatMessage[][], options, (one) => conversation(one, params, options), "chat");
  }

  /** Complete a prompt, token by token. */
  stream(prompt: Prompt, params?: SamplingParams, options: GenerateOptions = {}): Stream {
    return this.#stream("generate", generation(prompt, params, options), options);
  }

  /** Answer a conversation, token by token. */
  streamChat(messages: ChatMessage[], params?: SamplingParams, options: ChatOptions = {}): Stream {
    return this.#stream("chat", conversation(messages, params, options), options);
  }

  /** Begin a session of universal calls: any documented object of vLLM, by name. */
  session(options: SessionOptions = {}): Session {
    return new Session(this.name, (call) => this.#ready(timeoutOf(call), call.signal), options);
  }

  async tokenize(prompt: string, options: CallOptions = {}): Promise<number[]> {
    return (await this.#result<{ token_ids: number[] }>("tokenize", { prompt }, options)).token_ids;
  }

  async detokenize(token_ids: number[], options: CallOptions = {}): Promise<string> {
    return (await this.#result<{ text: string }>("detokenize", { token_ids }, options)).text;
  }

  /** Give the model back; it stops with its last holder. */
  async close(): Promise<void> {
    const held = this.#held;
    this.#held = undefined;
    if (held?.alive) await resultOf(held, headerOf("", "release", {}), { name: this.name }, CONTROL_MS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal Hold the model on the connection of now: leases end with their connection. */
  async attach(options: CallOptions & { onProgress?: (progress: Progress) => void }): Promise<Connection> {
    // A model loads as long as it gets on, the pool sees to that; the library's profile is for calls.
    const limited = options.timeout !== undefined || options.timeoutProfile !== undefined;
    const timeout = limited ? timeoutOf(options) : null;
    const connection = await this.#pool.link.connection(timeout);
    if (this.#held === connection) return connection;
    this.#attaching ??= this.#load(connection, timeout, options).finally(() => {
      this.#attaching = undefined;
    });
    return this.#attaching;
  }

  async #load(
    connection: Connection,
    timeout: number | null,
    { signal, onProgress }: CallOptions & { onProgress?: (progress: Progress) => void },
  ): Promise<Connection> {
    const header = headerOf("", "load", {}, onProgress ? WINDOW : 0);
    const onItem = onProgress && ((value: unknown) => onProgress(value as Progress));
    const loaded = await resultOf(connection, header, this.#specification, timeout, signal, onItem);
    this.notes = (loaded as { notes?: string[] }).notes ?? [];
    this.#held = connection;
    return connection;
  }

  /** Hold the model; return the connection to call on and the milliseconds left for the call. */
  async #ready(timeout: number | null, signal?: AbortSignal): Promise<Ready> {
    const start = performance.now();
    const connection = await untilAborted(this.attach({ timeout: timeout ?? Infinity }), signal);
    return { connection, left: timeout === null ? null : Math.max(0, timeout - (performance.now() - start)) };
  }

  async #result<T = RequestOutput>(verb: string, args: Record<string, unknown>, options: CallOptions): Promise<T> {
    const header = headerOf(this.name, verb, options);
    const { connection, left } = await this.#ready(timeoutOf(options), options.signal);
    return (await resultOf(connection, header, args, left, options.signal)) as T;
  }

  /** Open a bounded number of calls at a time; the first failure gives up the others. */
  async #all<T>(
    list: T[],
    options: GenerateOptions,
    argsOf: (one: T) => Record<string, unknown>,
    verb: string,
  ): Promise<RequestOutput[]> {
    const timeout = timeoutOf(options);
    const others = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, others.signal]) : others.signal;
    const end = timeout === null ? Infinity : performance.now() + timeout;
    const results = new Array<RequestOutput>(list.length);
    const numbers = list.keys();
    const work = async () => {
      for (const index of numbers) {
        const requestId = options.requestId === undefined ? {} : { requestId: `${options.requestId}-${index}` };
        const left = Math.max(1, end - performance.now());
        const own = { ...options, ...requestId, signal, timeout: left };
        results[index] = await this.#result(verb, argsOf(list[index] as T), own);
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(AT_ONCE, list.length) }, work));
    } catch (error) {
      others.abort();
      throw error;
    }
    return results;
  }

  #stream(verb: string, args: Record<string, unknown>, options: CallOptions): Stream {
    const timeout = timeoutOf(options);
    const header = { ...headerOf(this.name, verb, options), window: WINDOW };
    return new Stream(() => this.#ready(timeout), header, args, options.signal);
  }
}

function isList(prompts: Prompt | Prompt[]): prompts is Prompt[] {
  return Array.isArray(prompts) && !(prompts.length > 0 && prompts.every((item) => typeof item === "number"));
}

function generation(prompt: unknown, sampling_params: SamplingParams | undefined, { lora_request }: GenerateOptions): Record<string, unknown> {
  return { prompt, sampling_params, lora_request };
}

function conversation(messages: unknown, sampling_params: SamplingParams | undefined, options: ChatOptions): Record<string, unknown> {
  const { lora_request, chat_template, chat_template_kwargs, tools } = options;
  const { add_generation_prompt, continue_final_message } = options;
  return {
    messages,
    sampling_params,
    lora_request,
    chat_template,
    chat_template_kwargs,
    tools,
    add_generation_prompt,
    continue_final_message,
  };
}

export { PROFILES };
