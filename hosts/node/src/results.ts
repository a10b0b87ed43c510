// What calls return: vLLM's names and shapes.

export interface Logprob {
  logprob: number;
  rank: number | null;
  decoded_token: string | null;
}

/** For each position, token id (as text) → log-probability; null where nothing comes before. */
export type Logprobs = (Record<string, Logprob> | null)[];

export interface CompletionOutput {
  index: number;
  text: string;
  token_ids: number[];
  cumulative_logprob: number | null;
  logprobs: Logprobs | null;
  finish_reason: "stop" | "length" | "abort" | null;
  stop_reason: number | string | null;
}

/** What one step adds to one sequence: only what is new. */
export type Delta = CompletionOutput;

export interface RequestOutput {
  request_id: string;
  prompt: string | null;
  prompt_token_ids: number[] | null;
  prompt_logprobs: Logprobs | null;
  num_cached_tokens: number | null;
  finished: boolean;
  /** The sequences in the order of `index`; absent in the summary of a stream. */
  outputs: CompletionOutput[];
  usage: { prompt_tokens: number; completion_tokens: number; cached_tokens: number };
  /** What was translated of old names, for people; absent if nothing was. */
  notes?: string[];
}

/** One stage that a worker reached while a model was loaded. */
export interface Progress {
  worker: string;
  state: string;
  stage: string;
  elapsed: number;
}

export interface PoolStatus {
  supervisor: Record<string, unknown> & { pid: number; epoch: string; endpoint: string };
  spawner: { pid: number };
  models: (Record<string, unknown> & { name: string; state: string })[];
  workers: (Record<string, unknown> & {
    id: string;
    model: string;
    pid: number | null;
    state: string;
    unfinished: number;
  })[];
  counters: Record<string, unknown>;
}
