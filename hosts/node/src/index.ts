export * from "./errors.js";
export type { CallOptions } from "./calls.js";
export type { EngineArgs, LoRARequest, SamplingParams, StructuredOutputs } from "./params.js";
export { LLM, PROFILES, Pool, defaultEndpoint } from "./pool.js";
export type { ChatMessage, ChatOptions, ConnectOptions, GenerateOptions, LoadOptions, Prompt } from "./pool.js";
export type { CompletionOutput, Delta, Logprob, Logprobs, PoolStatus, Progress, RequestOutput } from "./results.js";
export { Stream } from "./stream.js";
export { Complex, Duration, FrozenSet, IsoTime, NdArray, Tuple } from "./values.js";
