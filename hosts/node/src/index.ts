export * from "./errors.js";
export type { CallOptions } from "./calls.js";
export type { EngineArgs, LoRARequest, SamplingParams, StructuredOutputs } from "./params.js";
export { LLM, PROFILES, Pool, defaultEndpoint } from "./pool.js";
export type { ChatMessage, ChatOptions, ConnectOptions, GenerateOptions, LoadOptions, Prompt } from "./pool.js";
export type { CompletionOutput, Delta, Logprob, Logprobs, PoolStatus, Progress, RequestOutput } from "./results.js";
export { ItemStream, Stream } from "./stream.js";
export { type Kwargs, RemoteRef, Session, type SessionOptions } from "./universal.js";
export { Complex, Duration, FrozenSet, IsoTime, NdArray, Ref, Tuple } from "./values.js";
